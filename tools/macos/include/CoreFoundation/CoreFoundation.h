// The one name of CoreFoundation that metal-cpp's headers use.
#pragma once

typedef double CFTimeInterval;
