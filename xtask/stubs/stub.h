/* What the stubs have in common. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Says which function was called, and aborts: a stub never seems to have done anything. */
static inline _Noreturn void not_here(const char *function)
{
	static const char says[] = ": called, but CRIU was given a stub of its library\n";

	if (write(STDERR_FILENO, function, strlen(function)) < 0 ||
	    write(STDERR_FILENO, says, sizeof(says) - 1) < 0)
		abort();
	abort();
}

/* CRIU passes arguments and awaits a result, of which nothing needs be known here. */
#define ABORTS(function) \
	_Noreturn void function(void) { not_here(#function); }
