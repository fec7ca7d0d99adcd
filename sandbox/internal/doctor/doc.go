// Package doctor looks at everything of the machine that a sandbox depends on and
// says, for each thing, what there is, what sbx does where it is missing, and what
// an administrator can do about it.
//
// [Run] changes nothing: it reads files, opens two device nodes, clones one process
// that executes nothing (userns.Probe) and asks fuse-overlayfs for its version.
// Its checks are independent of each other and always come in the same order with
// the same names, so that programs can rely on them:
//
//	kernel              release, and what it is too old for
//	user-namespaces     a real clone whose capabilities count
//	max-user-namespaces sysctl user.max_user_namespaces
//	apparmor            restriction of user namespaces, with the profile to install
//	subordinate-ids     /etc/subuid, /etc/subgid or a directory service
//	newuidmap           newuidmap and newgidmap, and whether they can gain privilege
//	tun                 /dev/net/tun
//	fuse                /dev/fuse
//	fuse-overlayfs      the program and its version
//	ping                sysctl net.ipv4.ping_group_range
//	low-ports           sysctl net.ipv4.ip_unprivileged_port_start
//	cgroup              version, delegation, the user's systemd
//	seccomp             filters
//	landlock            ABI version
//	runtime-dir         XDG_RUNTIME_DIR
//	linger              whether sandboxes outlive the login
//	container           whether this is inside a container, and what it masks
//
// Limits: a file is read up to 64 KiB (mountinfo up to 4 MiB); the only program run
// has 5 seconds.
package doctor
