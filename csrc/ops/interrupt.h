// Lets Ctrl-C stop an operator between two pieces of its work.
#pragma once

namespace simmim {

// Throws Python's KeyboardInterrupt where one is pending. Called without the GIL, by the thread
// that called the operator.
void check_interrupt();

}  // namespace simmim
