#ifndef GREET_H
#define GREET_H

#include <stddef.h>

/* Writes a greeting for `name` into `buffer`, at most `size` bytes with the final zero.
 * Returns how long the whole greeting is, without the zero. */
size_t greet(char *buffer, size_t size, const char *name);

#endif
