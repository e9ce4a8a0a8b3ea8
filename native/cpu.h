// Which instruction sets this binary has and this CPU can run.
#pragma once

#include <string>
#include <vector>

#include "operations.h"

namespace mainspring {

// Best first; "portable" is always there.
std::vector<const Operations*> usable_operations();

}  // namespace mainspring
