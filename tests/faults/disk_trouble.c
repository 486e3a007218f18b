/* What a disk can do that no file system here does on request, switched while the process runs.

   The file named by DISK_TROUBLE says what befalls the files below DISK_TROUBLE_BELOW:
   "eio" every fsync fails, "slow SECONDS" every fsync takes so long, "hold" none ends before the
   file says something else (DISK_TROUBLE.held is there once one has begun), "nolink" and "exdev"
   refuse hard links and renames that do not replace. Empty or missing: nothing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void read_trouble(char *into, size_t size)
{
	const char *name = getenv("DISK_TROUBLE");
	ssize_t length = -1;
	int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0) {
		length = read(fd, into, size - 1);
		close(fd);
	}
	into[length > 0 ? length : 0] = 0;
}

static int is_below(int fd)
{
	const char *below = getenv("DISK_TROUBLE_BELOW");
	char link[64], path[4096];
	ssize_t length;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof path - 1);
	if (!below || length <= 0)
		return 0;
	path[length] = 0;
	return strncmp(path, below, strlen(below)) == 0;
}

static void wait_for(double seconds)
{
	struct timespec left = { (time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9) };

	while (nanosleep(&left, &left) && errno == EINTR)
		;
}

static void hold(void)
{
	char name[4096], trouble[64];
	int fd;

	snprintf(name, sizeof name, "%s.held", getenv("DISK_TROUBLE"));
	fd = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0)
		close(fd);
	do {
		wait_for(0.01);
		read_trouble(trouble, sizeof trouble);
	} while (strncmp(trouble, "hold", 4) == 0);
}

static int sync_with_trouble(int fd, const char *name)
{
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
	char trouble[64];
	double seconds;

	if (is_below(fd)) {
		read_trouble(trouble, sizeof trouble);
		if (strncmp(trouble, "eio", 3) == 0) {
			errno = EIO;
			return -1;
		}
		if (sscanf(trouble, "slow %lf", &seconds) == 1)
			wait_for(seconds);
		if (strncmp(trouble, "hold", 4) == 0)
			hold();
	}
	return real(fd);
}

int fsync(int fd) { return sync_with_trouble(fd, "fsync"); }

int fdatasync(int fd) { return sync_with_trouble(fd, "fdatasync"); }

static int gives_no_names(int at)
{
	char trouble[64];

	if (!is_below(at))
		return 0;
	read_trouble(trouble, sizeof trouble);
	if (strncmp(trouble, "nolink", 6) && strncmp(trouble, "exdev", 5))
		return 0;
	errno = trouble[0] == 'n' ? EPERM : EXDEV;
	return 1;
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
	int (*real)(int, const char *, int, const char *, int) =
		(int (*)(int, const char *, int, const char *, int))dlsym(RTLD_NEXT, "linkat");

	return gives_no_names(to) ? -1 : real(from, old, to, new, flags);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned flags)
{
	int (*real)(int, const char *, int, const char *, unsigned) =
		(int (*)(int, const char *, int, const char *, unsigned))dlsym(RTLD_NEXT, "renameat2");

	return gives_no_names(to) ? -1 : real(from, old, to, new, flags);
}
