# Sums up what was built.
echo "writing the report"
{
    echo "program: $hello, $(wc -c < "$hello") bytes"
    echo "library: $library, $(wc -c < "$library") bytes"
    echo "tests:"
    sed 's/^/  /' "$log"
} > "$out"
