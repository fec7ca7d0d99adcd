package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// The bench is three processes of one binary:
//
//	outer   checks the flags, makes a directory, starts pid1 in new pid, network
//	        and mount namespaces, and removes the directory when pid1 has ended
//	pid1    reaps orphans; when it ends, however that comes about, the kernel ends
//	        every process and removes every mount and interface of the run
//	inner   measures
//
// pid1 dies with outer (PDEATHSIG), so even SIGKILL leaves only a directory.

const workEnv = "SBX_BENCH_WORK"

func outer(args []string) error {
	opt, err := parseOptions(args)
	if err != nil {
		if errors.Is(err, errHelp) {
			return nil
		}
		return err
	}
	if opt.merge {
		return mergeFiles(opt)
	}
	if os.Getuid() != 0 {
		return errors.New("needs root, for veth pairs and for the sysctls of a network namespace of its own; sandboxes run as $SBX_TEST_USER (default sbxtest)")
	}
	u, err := benchUser()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("/var/tmp", "sbx-bench.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := errors.Join(os.Chmod(work, 0o755), os.Chown(work, u.uid, u.gid)); err != nil {
		return err
	}

	// The jail ends by itself; outer stays to clean up after it.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	cmd := exec.Command("/proc/self/exe", append([]string{rolePid1}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), workEnv+"="+work)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start in new namespaces: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err = <-done:
	case s := <-signals:
		cmd.Process.Kill()
		<-done
		return fmt.Errorf("%v", s)
	}
	if err != nil {
		return errors.New("the run failed")
	}
	return nil
}

// pid1 mounts what belongs to the new namespaces, starts inner, and reaps until it
// has ended.
func pid1() int {
	fail := func(what string, err error) int {
		fmt.Fprintf(os.Stderr, "bench: %s: %v\n", what, err)
		return 1
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail("make the mounts private", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fail("mount /proc", err)
	}
	// crun does not start on a machine with version 1 and 2; where only 2 is mounted
	// this changes nothing.
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fail("mount cgroup2", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return fail("find this program", err)
	}
	// A terminal's ^C reaches everybody; inner decides what it means.
	signal.Ignore(unix.SIGINT)
	main, err := syscall.ForkExec(exe, append([]string{exe, roleInner}, os.Args[2:]...), &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return fail("start", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fail("wait", err)
		case pid == main && status.Exited():
			return status.ExitStatus()
		case pid == main:
			return 128 + int(status.Signal())
		}
	}
}

// inner prepares the namespaces and measures.
func inner(args []string) error {
	opt, err := parseOptions(args)
	if err != nil {
		return err
	}
	// Thousands of flows are measured; what we start inherits the limit.
	var limit syscall.Rlimit
	err = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit)
	if err == nil {
		limit.Cur = limit.Max
		err = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		return fmt.Errorf("raise the number of open files: %w", err)
	}
	w, err := newWorld(os.Getenv(workEnv), opt)
	if err != nil {
		return err
	}
	defer w.close()
	return w.measure()
}

// copyFile copies an executable to where the ordinary user can run it, and keeps a
// build in the meantime from changing what is measured.
func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		return err
	}
	return os.Chmod(to, 0o755)
}
