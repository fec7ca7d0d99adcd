package security

// callCatalogue: system calls that ask the kernel for too much. Most are refused by
// the seccomp profile; with every capability and no profile it is the user namespace
// that refuses.
var callCatalogue = []attempt{
	{name: "set the host name", try: words("sethost"), refused: eperm, open: admin},
	{name: "set the domain name", try: words("setdomain"), refused: eperm, open: admin},
	{name: "load a bpf program", try: words("bpf_prog"), refused: eperm},
	{name: "load a bpf program, with every capability", try: words("bpf_prog"), flags: everyCap, refused: eperm},
	{name: "count the machine's cycles", try: words("perf"), refused: words("EPERM", "EACCES")},
	{name: "count the machine's cycles, with every capability", try: words("perf"), flags: everyCap, refused: words("EPERM", "EACCES")},
	{name: "userfaultfd", try: words("uffd"), refused: eperm, open: bare},
	{name: "io_uring", try: words("io_uring"), refused: eperm, open: bare},
	{name: "read the session keyring", try: words("keyctl"), refused: eperm, open: bare},
	{name: "add a key", try: words("add_key"), refused: eperm, open: bare},
	{name: "ask for a key of the host", try: words("req_key"), refused: eperm},
	{name: "ask for a key of the host, without a filter", try: words("req_key"), flags: bare, refused: words("ENOKEY", "ENOENT")},
	{name: "reboot", try: words("reboot"), refused: eperm},
	{name: "set the time", try: words("settime"), refused: eperm},
	{name: "set the time, with every capability", try: words("clock_set"), flags: everyCap, refused: words("EPERM", "EINVAL")},
	{name: "change the clock's speed", try: words("adjtime"), refused: eperm},
	{name: "change the clock's speed, with every capability", try: words("adjtime"), flags: everyCap, refused: eperm},
	{name: "load a module", try: words("init_mod"), refused: eperm},
	{name: "load a module, with every capability", try: words("init_mod"), flags: everyCap, refused: words("EPERM", "ENOSYS")},
	{name: "load a module from a file", try: words("finit_mod"), refused: eperm},
	{name: "remove a module", try: words("delete_mod"), refused: eperm},
	{name: "load another kernel", try: words("kexec"), refused: eperm},
	{name: "load another kernel, with every capability", try: words("kexec"), flags: everyCap, refused: words("EPERM", "ENOSYS")},
	{name: "load another kernel from a file", try: words("kexec_file"), refused: eperm},
	{name: "swap", try: words("swapon"), refused: eperm},
	{name: "swap, with every capability", try: words("swapon"), flags: everyCap, refused: words("EPERM", "ENOSYS")},
	{name: "account for processes", try: words("acct"), refused: eperm},
	{name: "change quotas", try: words("quotactl"), refused: eperm},
	{name: "read the kernel's log", try: words("syslog"), refused: eperm},
	{name: "the machine's ports", try: words("iopl"), refused: eperm},
	{name: "the machine's ports, with every capability", try: words("iopl"), flags: everyCap, refused: words("EPERM", "ENOSYS")},
	{name: "watch all files", try: words("fanotify"), refused: eperm},
	{name: "watch all files, with every capability", try: words("fanotify"), flags: everyCap, refused: eperm},
	{name: "no address randomisation", try: words("personality"), refused: eperm, open: bare},
	{name: "a user namespace by unshare", try: words("unshare"), refused: words("EPERM", "EINVAL")},
	{name: "a user namespace by clone", try: words("clone_user"), refused: eperm, open: bare},
	{name: "a namespace by clone3", try: words("clone3"), refused: words("ENOSYS")},
	{name: "a network namespace", try: words("unshare_net"), refused: eperm, open: admin},
	{name: "join the namespaces of pid 1", try: words("setns_one"), refused: eperm, open: admin},
	{name: "the calls of x32", try: words("x32"), refused: words("EPERM", "ENOSYS")},
	{name: "realtime priority", try: words("realtime"), refused: eperm},
	{name: "realtime priority, with every capability", try: words("realtime"), flags: everyCap, refused: eperm},
	{name: "raise a limit", try: words("rlimit_raise"), refused: eperm},
	{name: "raise a limit, with every capability", try: words("rlimit_raise"), flags: everyCap, refused: eperm},
	{name: "take back capabilities", try: words("cap_raise"), refused: eperm},
	{name: "change what the kernel says of us", try: words("mm_map"), refused: eperm},
	{name: "a file by its number", try: words("open_by_fh"), refused: eperm},
}

// mountCatalogue: what is mounted stays.
var mountCatalogue = []attempt{
	{name: "mount a tmpfs", try: words("mount"), refused: eperm, open: admin},
	{name: "bind the root", try: words("bind"), refused: eperm, open: admin},
	{name: "mount with the newer calls", try: words("fsopen"), refused: eperm, open: admin},
	{name: "copy the mount tree", try: words("open_tree"), refused: eperm, open: admin},
	{name: "make /proc/sys writable", try: words("remount", "/proc/sys"), refused: eperm, open: admin},
	{name: "make a read-only root writable", try: words("remount", "/"), flags: words("--read-only"), refused: eperm},
	{name: "make a read-only volume writable", try: words("remount", "/v"), flags: words("-v", "DIR:/v:ro"), refused: eperm},
	{name: "remove a mask", try: words("umount", "/proc/interrupts"), refused: eperm, open: admin},
	{name: "pivot_root", try: words("pivot_root"), refused: eperm},
	{name: "a chroot and out of it", try: words("chroot", "CANARY"), refused: words("ENOENT")},
	{name: "mount a disk", try: words("mount_disk", "/dev/vda"), flags: everyCap, refused: words("EPERM", "ENOENT", "ENOTBLK", "EACCES")},
	{name: "mount cgroup v1", try: words("cgroup_v1"), refused: eperm},
	{name: "a release agent", try: words("release_agent"), refused: eperm},
	{name: "a release agent, with every capability", try: words("release_agent"), flags: everyCap, refused: words("EPERM", "EACCES", "EINVAL", "ENODEV", "ENOENT")},
	{name: "a new /proc without masks", try: words("nested_proc"), flags: bare, refused: eperm, open: words("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined")},
}

// readOnly: the mount is, the file is root's, or this kernel has none.
var readOnly = words("EROFS", "EACCES", "ENOENT")

// procCatalogue: /proc and /sys.
var procCatalogue = []attempt{
	{name: "write core_pattern", try: words("write", "/proc/sys/kernel/core_pattern"), refused: readOnly},
	{name: "write core_pattern, with every capability", try: words("write", "/proc/sys/kernel/core_pattern"), flags: everyCap, refused: words("EACCES", "ENOENT")},
	{name: "write modprobe", try: words("write", "/proc/sys/kernel/modprobe"), refused: readOnly},
	{name: "write modprobe, with every capability", try: words("write", "/proc/sys/kernel/modprobe"), flags: everyCap, refused: words("EACCES", "ENOENT")},
	{name: "write to the virtual memory", try: words("write", "/proc/sys/vm/drop_caches"), flags: everyCap, refused: words("EACCES", "ENOENT")},
	{name: "register a binary format", try: words("write", "/proc/sys/fs/binfmt_misc/register"), refused: words("EROFS", "ENOENT")},
	{name: "press SysRq", try: words("write", "/proc/sysrq-trigger"), refused: readOnly},
	{name: "press SysRq, with every capability", try: words("write", "/proc/sysrq-trigger"), flags: everyCap, refused: words("EACCES", "ENOENT")},
	{name: "read the kernel's memory", try: words("read", "/proc/kcore"), refused: words("ENODATA", "ENOENT", "EACCES")},
	{name: "read the kernel's memory, with every capability", try: words("read", "/proc/kcore"), flags: everyCap, refused: words("ENODATA", "ENOENT", "EACCES", "EPERM")},
	{name: "read the keys", try: words("read", "/proc/keys"), refused: words("ENODATA", "ENOENT")},
	{name: "read the interrupts", try: words("read", "/proc/interrupts"), refused: words("ENODATA", "ENOENT")},
	{name: "read the timers", try: words("read", "/proc/timer_list"), refused: words("ENODATA", "ENOENT", "EACCES")},
	{name: "list the firmware", try: words("list", "/sys/firmware"), refused: words("ENODATA", "ENOENT")},
	{name: "write uevent_helper", try: words("write", "/sys/kernel/uevent_helper"), refused: words("EROFS", "ENOENT")},
	{name: "write uevent_helper, with every capability", try: words("write", "/sys/kernel/uevent_helper"), flags: everyCap, refused: words("EROFS", "ENOENT", "EACCES")},
	{name: "make a group of one's own", try: words("create", "/sys/fs/cgroup/evil"), refused: words("EROFS", "EACCES", "ENOENT")},
	{name: "move out of the group", try: words("write", "/sys/fs/cgroup/cgroup.procs"), refused: words("EROFS", "EACCES", "ENOENT")},
	{name: "write to the cgroup, with every capability", try: words("write", "/sys/fs/cgroup/../../fs/cgroup/cgroup.procs"), flags: everyCap, refused: words("EROFS", "EACCES", "ENOENT")},
}

// deviceCatalogue: only those of Docker's list are there.
var deviceCatalogue = []attempt{
	{name: "a device node of the memory", try: words("mknod", "1", "1"), refused: eperm},
	{name: "a device node of a disk", try: words("mknod", "8", "0"), refused: eperm},
	{name: "a device node, with every capability", try: words("mknod", "1", "1"), flags: everyCap, refused: eperm},
	{name: "a device node of an image", try: words("read", "/data/null"), refused: words("EACCES", "ENXIO", "ENOENT", "EPERM", "ENODATA")},
	{name: "the memory's device", try: words("read", "/dev/mem"), refused: words("ENOENT")},
	{name: "the kernel's messages", try: words("read", "/dev/kmsg"), refused: words("ENOENT")},
	{name: "tun", try: words("write", "/dev/net/tun"), refused: words("ENOENT"), host: true},
	{name: "fuse", try: words("write", "/dev/fuse"), refused: words("ENOENT"), host: true},
	{name: "a disk", try: words("read", "/dev/vda"), refused: words("ENOENT")},
}

// processCatalogue: processes outside do not exist.
var processCatalogue = []attempt{
	{name: "kill a process outside", try: words("kill", "PID"), refused: words("ESRCH")},
	{name: "kill everything", try: words("kill_all"), refused: words("ok", "ESRCH")},
	{name: "a descriptor of a process outside", try: words("pidfd", "PID"), refused: words("ESRCH", "EINVAL"), host: true},
	{name: "trace a process outside", try: words("attach", "PID"), refused: words("ESRCH", "EPERM"), host: true},
	{name: "trace a process outside, with every capability", try: words("attach", "PID"), flags: everyCap, refused: words("ESRCH", "EPERM")},
	{name: "read a process's memory outside", try: words("vm_read", "PID"), refused: words("ESRCH", "EPERM"), host: true},
	{name: "write a process's memory outside", try: words("proc_mem", "PID"), refused: words("ENOENT"), host: true},
	{name: "the root of a process outside", try: words("proc_root", "PID"), refused: words("ENOENT"), host: true},
	{name: "limit a process outside", try: words("prlimit", "PID"), refused: words("ESRCH", "EPERM")},
	{name: "move a process outside", try: words("affinity", "PID"), refused: words("ESRCH", "EPERM")},
	{name: "have a process outside killed", try: words("oom_adj", "PID"), refused: words("ENOENT", "EACCES")},
	{name: "slow down all of the user's processes", try: words("nice_user"), refused: words("ok")},
	{name: "become more important", try: words("nice_up"), refused: words("EACCES", "EPERM")},
	{name: "never be killed for memory", try: words("oom_never"), refused: words("EACCES", "EPERM")},
	{name: "trace init", try: words("attach", "1"), flags: words("--init"), refused: eperm},
	{name: "write init's memory", try: words("proc_mem", "1"), flags: words("--init"), refused: words("EACCES", "EPERM")},
	{name: "init's descriptors", try: words("write", "/proc/1/fd/0"), flags: words("--init"), refused: words("EACCES", "EPERM")},
	{name: "init's root", try: words("proc_root", "1"), flags: words("--init"), refused: words("EACCES", "EPERM")},
	{name: "init's program", try: words("write", "/proc/1/exe"), flags: words("--init", "--cap-add", "SYS_PTRACE"), refused: words("EROFS", "EPERM", "EACCES")},
}

// fileCatalogue: files of the host.
var fileCatalogue = []attempt{
	{name: "a file of the host", try: words("read", "CANARY"), refused: words("ENOENT"), host: true, open: words("-v", "DIR:DIR")},
	{name: "a file of the host through the links of /proc", try: words("magic", "CANARY"), refused: words("ENOENT"), open: words("-v", "DIR:DIR")},
	{name: "the root of a mounted file system, by number", try: words("handle", "/v"), flags: words("-v", "DIR:/v"), refused: eperm},
	{name: "the root of a mounted file system, with every capability", try: words("handle", "/v"), flags: append(words("-v", "DIR:/v"), everyCap...), refused: words("EPERM", "ESTALE", "EOPNOTSUPP")},
	{name: "an open descriptor", try: words("leaks"), refused: words("EBADF")},
	{name: "a secret in the environment", try: words("environ", "SECRET"), refused: words("ENOENT"), open: words("-e", "SBX_WITNESS")},
	{name: "a secret in the environment of init", try: words("environ", "SECRET"), flags: words("--init", "--cap-add", "SYS_PTRACE"), refused: words("ENOENT")},
	{name: "write to a read-only root", try: words("create", "/evil"), flags: words("--read-only"), refused: words("EROFS"), open: words("--init")},
	{name: "write to a read-only volume", try: words("create", "/v/canary"), flags: words("-v", "DIR:/v:ro"), refused: words("EROFS")},
}

// socketCatalogue: sockets, and who is at the other end.
var socketCatalogue = []attempt{
	{name: "a virtual machine's socket", try: words("vsock"), refused: eperm},
	{name: "a socket of the kernel's ciphers", try: words("alg"), refused: eperm},
	{name: "bluetooth", try: words("bluetooth"), refused: eperm},
	{name: "a car's bus", try: words("can"), refused: eperm},
	{name: "tipc", try: words("tipc"), refused: eperm},
	{name: "rds", try: words("rds"), refused: eperm},
	{name: "smc", try: words("smc"), refused: eperm},
	{name: "kcm", try: words("kcm"), refused: eperm},
	{name: "nfc", try: words("nfc"), refused: eperm},
	{name: "qipcrtr", try: words("qipcrtr"), refused: eperm},
	{name: "xdp", try: words("xdp"), refused: eperm, open: bare},
	{name: "the audit log", try: words("audit"), refused: words("EPERM", "ECONNREFUSED", "EPROTONOSUPPORT")},
	{name: "a packet socket without the capability", try: words("packet"), flags: words("--cap-drop", "NET_RAW"), refused: eperm, open: asItIs},
	{name: "a raw socket without the capability", try: words("rawsock"), flags: words("--cap-drop", "NET_RAW"), refused: eperm, open: asItIs},
	{name: "a raw socket on the host's network", try: words("rawsock"), flags: words("--network", "host"), refused: eperm},
	{name: "a Unix socket of the host", try: words("unix", "SOCKET"), refused: words("ENOENT"), host: true, open: words("-v", "DIR:DIR")},
	{name: "an abstract socket of the host", try: words("abstract", "SECRET"), refused: words("ECONNREFUSED"), host: true, open: words("--network", "host")},
	{name: "the host's loopback as one's own", try: words("tcp", "127.0.0.1:PORT"), refused: words("ECONNREFUSED"), host: true, open: words("--network", "host")},
	{name: "the host's loopback at the gateway", try: words("tcp", "host.sbx.internal:PORT"), refused: words("ECONNREFUSED"), open: words("--host-access", "PORT")},
	{name: "the host's loopback by another of its addresses", try: words("tcp", "127.1.2.3:PORT"), refused: words("ECONNREFUSED")},
	{name: "metadata of the cloud", try: words("tcp", "169.254.169.254:80"), refused: words("EHOSTUNREACH", "EACCES", "ENETUNREACH")},
	{name: "metadata of the cloud, IPv6", try: words("tcp", "[fd00:ec2::254]:80"), refused: words("EHOSTUNREACH", "EACCES", "ENETUNREACH")},
	{name: "a name without a network", try: words("resolve", "example.com"), flags: words("--network", "none"), refused: words("ENOENT")},
	{name: "an address without a network", try: words("tcp", "192.0.2.1:80"), flags: words("--network", "none"), refused: words("ENETUNREACH")},
}

// abuseCatalogue: more than its share.
var abuseCatalogue = []attempt{
	{name: "a fork bomb", try: words("forks", "300"), flags: words("--ulimit", "nproc=150"), refused: words("EAGAIN"), open: asItIs},
	{name: "a full /dev/shm", try: words("fill", "70", "/dev/shm/x"), refused: words("ENOSPC"), open: words("--shm-size", "100m")},
	{name: "a full /dev", try: words("fill", "70", "/dev/x"), refused: words("ENOSPC")},
	{name: "a full tmpfs", try: words("fill", "2", "/t/x"), flags: words("--tmpfs", "/t:size=1m"), refused: words("ENOSPC"), open: words("--tmpfs", "/t:size=3m")},
	{name: "a file over the limit", try: words("fill", "2", "/tmp/x"), flags: words("--ulimit", "fsize=1048576"), refused: words("EFBIG"), open: asItIs},
	{name: "all descriptors", try: words("files", "2000"), flags: words("--ulimit", "nofile=1000:1000"), refused: words("EMFILE"), open: words("--ulimit", "nofile=4000:4000")},
	{name: "all of the user's inotify instances", try: words("inotify", "80"), refused: words("EMFILE"), host: true},
	{name: "namespaces without end", try: words("namespaces", "300"), flags: bare, refused: words("ENOSPC")},
}
