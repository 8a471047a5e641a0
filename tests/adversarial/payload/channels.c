/* channels.c - attacks over terminals, sockets, keys, IPC and pipes. */
#include "payload.h"

#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>

/* ---- channels ------------------------------------------------------- */

/* Type one character into a terminal, with further bits in the part of the request that is ignored.
 */
int type_character(char **args)
{
	return say(syscall(SYS_ioctl, 0, TIOCSTI | (unsigned long)number(args[0]), "x"));
}

int terminal(char **args)
{
	return say(syscall(SYS_ioctl, 0, number(args[0]), "\3"));
}

int abstract(char **args)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path + 1, args[0], sizeof address.sun_path - 2);
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(args[0]));
	return say(connect(fd, (struct sockaddr *)&address, size));
}

/* Listen on an abstract name until stdin ends. */
int abstract_server(char **args)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path + 1, args[0], sizeof address.sun_path - 2);
	socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(args[0]));
	say(bind(fd, (struct sockaddr *)&address, size) < 0 ? -1 : listen(fd, 1));
	fflush(stdout);
	return (int)read(0, &fd, 1);
}

int connect_to(char **args)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	inet_pton(AF_INET, args[0], &address.sin_addr);
	address.sin_port = htons((uint16_t)number(args[1]));
	return say(connect(fd, (struct sockaddr *)&address, sizeof address));
}

/* Ask rtnetlink to make a device of a kind: the errno of its answer. */
int new_link(char **args)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg info;
		struct rtattr about, kind;
		char text[8];
	} request = {
		.header = { .nlmsg_len = sizeof request,
			    .nlmsg_type = RTM_NEWLINK,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK },
		.about = { 4 + 4 + 8, IFLA_LINKINFO },
		.kind = { 4 + 8, 1 /* IFLA_INFO_KIND */ },
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[512];
	} answer;

	strncpy(request.text, args[0], sizeof request.text);
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	if (fd < 0 || send(fd, &request, sizeof request, 0) < 0 ||
	    recv(fd, &answer, sizeof answer, 0) < 0)
		return say(-1);
	errno = -answer.error.error;
	return say(errno ? -1 : 0);
}

/* Give a key to a keyring, or look for it in one: KEY_SPEC_*_KEYRING by number. */
int key_add(char **args)
{
	return say(syscall(SYS_add_key, "user", args[1], "x", 1, number(args[0])));
}

int key_search(char **args)
{
	return say(
		syscall(SYS_keyctl, 10 /* KEYCTL_SEARCH */, number(args[0]), "user", args[1], 0));
}

int shared_memory(char **args)
{
	return say(syscall(SYS_shmget, number(args[0]), 4096, number(args[1])));
}

int message_queue(char **args)
{
	return say(syscall(SYS_mq_open, args[0], number(args[1]), 0666, NULL));
}

/* Print more than anybody wants to read. */
int flood(char **args)
{
	static char block[1 << 16];
	(void)args;
	memset(block, '\xff', sizeof block);
	while (write(1, block, sizeof block) > 0)
		;
	return 0;
}

int close_and_spin(char **args)
{
	(void)args;
	for (int fd = 0; fd < 3; fd++)
		close(fd);
	while (sched_yield() == 0)
		;
	return 0;
}

/* Descriptors other than 0, 1, 2. */
int descriptors(char **args)
{
	int found = 0;
	(void)args;
	for (int fd = 3; fd < 65536; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			found += printf("%d ", fd);
	puts(found ? "" : "none");
	return 0;
}
