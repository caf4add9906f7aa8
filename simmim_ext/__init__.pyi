from . import nn as nn
from ._version import __version__ as __version__
from .compression import compress as compress
from .config import CompressConfig as CompressConfig
from .diagnosis import Diagnostics as Diagnostics
from .diagnosis import diagnose as diagnose
from .discretization import Discretized as Discretized
from .discretization import discretize as discretize
from .distillation import distill as distill
from .errors import SimMIMError as SimMIMError
from .information import conditional_entropy as conditional_entropy
from .information import conditional_mutual_information as conditional_mutual_information
from .information import entropy as entropy
from .information import joint_entropy as joint_entropy
from .information import mutual_information as mutual_information
from .information import predictive_information as predictive_information
from .pruning import prune as prune
from .result import CompressionResult as CompressionResult
from .result import load as load
from .scoring import Scores as Scores
from .scoring import score as score
from .significance import IndependenceTest as IndependenceTest
from .significance import independence_test as independence_test
from .streaming import Histogram as Histogram
from .streaming import JointHistogram as JointHistogram

__all__: list[str]
