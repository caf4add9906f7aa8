"""The operators as torch sees them: one module for each family, with signature, fake and autograd."""
