/*
 * files.c - several small files of the kernel in one call.
 *
 * A file of a cgroup costs a few microseconds, and opened from Python, one by
 * one, half as much again; a run with limits writes and reads about twelve.
 *
 * Lists are strings that end with a NUL, one after the other.
 */
#include "internal.h"

#include <fcntl.h>

static const char *after(const char *text)
{
	return text + string_length(text) + 1;
}

int nsbox_write_files(const char *items, uint32_t count, uint32_t *done)
{
	for (*done = 0; *done < count; ++*done) {
		const char *text = after(items);
		int err = write_file(AT_FDCWD, items, text, string_length(text));
		if (err < 0)
			return err;
		items = after(text);
	}
	return 0;
}

/*
 * What is in a file, which the kernel gives whole in one read; return how much that is, or that
 * it cannot be opened now.
 */
static long read_file(const char *path, char *buffer, size_t size)
{
	long fd = RETRY(sys(__NR_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0));
	if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
		return fd;
	if (fd < 0)
		return 0;
	long got = RETRY(sys(__NR_read, fd, buffer, size));
	sys(__NR_close, fd);
	return got < 0 ? 0 : got;
}

int nsbox_read_files(const char *paths, uint32_t count, char *buffer, uint32_t size)
{
	size_t used = 0;

	if (size < count)
		return -ENOBUFS;
	for (uint32_t left = count; left > 0; left--) {
		/* What is left finds room for a NUL each. */
		long got = read_file(paths, buffer + used, size - used - left);
		if (got < 0)
			return (int)got;
		used += (size_t)got;
		buffer[used++] = '\0';
		paths = after(paths);
	}
	return (int)used;
}

int nsbox_open_files(const char *paths, uint32_t count, int flags, struct nsbox_files *files)
{
	if (count > sizeof files->fds / sizeof files->fds[0])
		return -E2BIG;
	for (files->count = 0; files->count < count; files->count++) {
		int err = nsbox_open(paths, flags, &files->fds[files->count]);
		if (err < 0)
			return err;
		paths = after(paths);
	}
	return 0;
}

int open_figures(const char *paths, uint32_t count, struct nsbox_files *files)
{
	if (count > sizeof files->fds / sizeof files->fds[0])
		return -E2BIG;
	for (files->count = 0; files->count < count; files->count++) {
		int32_t *fd = &files->fds[files->count];
		*fd = -1;
		int err = nsbox_open(paths, O_RDONLY, fd);
		if (err == -EMFILE || err == -ENFILE || err == -ENOMEM)
			return err;
		paths = after(paths);
	}
	return 0;
}

int read_opened(const struct nsbox_files *files, char *buffer, uint32_t size)
{
	uint32_t left = files->count;
	size_t used = 0;

	for (uint32_t i = 0; left > 0 && size - used >= left; i++, left--) {
		long got = RETRY(
			sys(__NR_pread64, files->fds[i], buffer + used, size - used - left, 0));
		used += got < 0 ? 0 : (size_t)got;
		buffer[used++] = '\0';
	}
	return (int)used;
}

int nsbox_close_files(struct nsbox_files *files)
{
	while (files->count)
		nsbox_close(&files->fds[--files->count]);
	return 0;
}
