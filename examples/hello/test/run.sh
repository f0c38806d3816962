# Runs the program and compares; the output exists only if every test passed.
echo "testing the program"
{
    "$hello"
    "$hello" store
    # A name that is too long must be refused.
    if "$hello" "$(printf '%0200d' 0)" 2>/dev/null; then
        echo "a long name was accepted"
    else
        echo "a long name is refused"
    fi
} > actual.txt
diff -u "$expected" actual.txt
cp actual.txt "$out"
