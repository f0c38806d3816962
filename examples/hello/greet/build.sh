# Builds the shared library, and puts the header into an output of its own.
echo "compiling the library"
mkdir -p "$out/lib" "$dev/include"
cp "$header" "$dev/include/greet.h"
# Under its own name, so that the code finds its header.
gcc -Wall -Wextra -O2 -fPIC -shared -I"$dev/include" \
    -Wl,-soname,libgreet.so -o "$out/lib/libgreet.so" "$code"
