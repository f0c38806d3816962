# Builds the shared library, and puts the header into an output of its own.
echo "compiling the library"
mkdir -p "$out/lib" "$dev/include"
cp "$header" "$dev/include/greet.h"
# Under a name of its own: the compiler notes the name of what it compiles, and the path of the
# source would become a reference of the library.
cp "$code" greet.c
gcc -Wall -Wextra -O2 -fPIC -shared -I"$dev/include" \
    -Wl,-soname,libgreet.so -o "$out/lib/libgreet.so" greet.c
