# Links the program against the library in the store; the run path makes the library a reference,
# so whoever has the program has the library too.
echo "linking the program"
mkdir -p "$out/bin"
cp "$code" hello.c
gcc -Wall -Wextra -O2 -I"$headers" -L"$library" -Wl,-rpath,"$library" \
    -o "$out/bin/hello" hello.c -lgreet
