#include <greet.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    char greeting[128];
    size_t length = greet(greeting, sizeof greeting, argc > 1 ? argv[1] : "world");
    if (length >= sizeof greeting) {
        fprintf(stderr, "hello: that name is too long\n");
        return 1;
    }
    return puts(greeting) < 0;
}
