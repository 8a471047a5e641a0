/*
 * terminal.c - a terminal of the payload's own, in the devpts inside.
 *
 * Its slave end is the payload's, its master end the caller's. A fresh devpts is known
 * to the child alone: it opens the two, and hands the master over by a socket of this
 * spawn that nobody but child and caller ever holds. In a sandbox that is there already,
 * the init opens the master, and all else is done here, by the caller.
 *
 * The slave is never looked up by a name: TIOCGPTPEER opens that of this very master.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/openat2.h>
#include <linux/stat.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

/* Whatever a file claims to be: is this the ptmx of a devpts, opened? 0, or -errno. */
static int check_master(int fd)
{
	struct statfs fs;
	struct statx info;

	long err = sys(__NR_fstatfs, fd, &fs);
	if (err == 0)
		err = sys(__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE, &info);
	if (err < 0)
		return (int)err;
	bool ptmx = fs.f_type == DEVPTS_SUPER_MAGIC && S_ISCHR(info.stx_mode) &&
		    info.stx_rdev_major == 5 && info.stx_rdev_minor == 2;
	return ptmx ? 0 : -ENODEV;
}

/* Set the terminal of a master up, and open its slave; a descriptor, or -errno. */
static int open_slave(int master, const struct nsbox_request *request)
{
	static const int unlocked;
	const struct winsize size = { .ws_row = request->rows, .ws_col = request->columns };

	int err = check_master(master);
	if (err == 0)
		err = (int)sys(__NR_ioctl, master, TIOCSPTLCK, &unlocked);
	if (err == 0)
		err = (int)sys(__NR_ioctl, master, TIOCSWINSZ, &size);
	if (err < 0)
		return err;
	return lift((int)sys(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC));
}

/* What a child has sent is checked like what an init has opened; a descriptor, or -errno. */
static int receive_master(int socket)
{
	int fd = receive_descriptor(socket);
	int err = fd < 0 ? fd : check_master(fd);

	if (err == 0)
		return lift(fd);
	if (fd >= 0)
		sys(__NR_close, fd);
	return err;
}

/* ---- a fresh sandbox ------------------------------------------------ */

/* The caller, before the clone. */
int prepare_terminal(struct spawn *spawn)
{
	int pair[2];

	if (!spawn->request->terminal)
		return 0;
	long err = sys(__NR_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair);
	if (err < 0)
		return fail(spawn, NSBOX_STEP_SOCKETPAIR, -1, err);
	/* Not among 0, 1, 2, which the child will replace. */
	spawn->terminal_sockets[0] = lift(pair[0]);
	spawn->terminal_sockets[1] = lift(pair[1]);
	for (int i = 0; i < 2; i++)
		if (spawn->terminal_sockets[i] < 0)
			return fail(spawn, NSBOX_STEP_SOCKETPAIR, -1, spawn->terminal_sockets[i]);
	return 0;
}

/*
 * The child, when the mounts are there. By the descriptor of the mount that this spawn
 * has made: no path leads astray. Whoever opens it owns the slave.
 */
int open_terminal(struct spawn *spawn)
{
	if (!spawn->request->terminal)
		return 0;
	long master = open_beneath(spawn->mounts[spawn->plan->devpts], "ptmx", O_RDWR | O_NOCTTY,
				   RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV);
	if (master < 0)
		return fail(spawn, NSBOX_STEP_TERMINAL_OPEN, -1, master);
	spawn->terminal = open_slave((int)master, spawn->request);
	if (spawn->terminal < 0)
		return fail(spawn, NSBOX_STEP_TERMINAL_PEER, -1, spawn->terminal);
	long err = send_descriptor(spawn->terminal_sockets[1], (int)master);
	sys(__NR_close, master);
	return err < 0 ? fail(spawn, NSBOX_STEP_TERMINAL_PASS, -1, err) : 0;
}

/* The caller, when the payload executes. */
int take_terminal(struct spawn *spawn)
{
	int32_t *master = spawn->request->terminal;

	if (!master)
		return 0;
	*master = receive_master(spawn->terminal_sockets[0]);
	if (*master >= 0)
		return 0;
	int err = *master;
	*master = -1;
	return fail(spawn, NSBOX_STEP_TERMINAL_PASS, -1, err);
}

void close_terminal_sockets(struct spawn *spawn)
{
	for (int i = 0; i < 2; i++)
		nsbox_close(&spawn->terminal_sockets[i]);
}

/* ---- a sandbox that is there ---------------------------------------- */

/*
 * The slave of what an init has opened as "/dev/pts/ptmx", for one of its processes; or
 * -errno. Files that an init opens do not wait; a terminal does, until told otherwise.
 */
int open_slave_of(int master, const struct nsbox_request *request)
{
	int slave = open_slave(master, request);
	if (slave >= 0)
		sys(__NR_fcntl, master, F_SETFL, 0);
	return slave;
}
