package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const (
	freezePatience = 10 * time.Second
	killPatience   = 10 * time.Second
)

// Freeze stops every process of the workload and returns when they have stopped. If it
// fails they run on.
func (g *Group) Freeze(ctx context.Context) error {
	if err := freeze(ctx, g.box()); err != nil {
		return errors.Join(err, g.Thaw(context.WithoutCancel(ctx)))
	}
	return nil
}

func freeze(ctx context.Context, dir string) error {
	if err := cgroups.WriteFile(dir, "cgroup.freeze", "1"); err != nil {
		return fmt.Errorf("freeze the sandbox: %w", err)
	}
	if err := until(ctx, dir, "cgroup.events", "frozen", 1, freezePatience); err != nil {
		return fmt.Errorf("freeze the sandbox: %w", err)
	}
	return nil
}

// Thaw lets them run on.
func (g *Group) Thaw(ctx context.Context) error {
	err := cgroups.WriteFile(g.box(), "cgroup.freeze", "0")
	if err == nil {
		err = until(ctx, g.box(), "cgroup.events", "frozen", 0, freezePatience)
	}
	if err != nil {
		return fmt.Errorf("thaw the sandbox: %w", err)
	}
	return nil
}

// Kill ends every process of the workload, frozen ones too, and returns when they have
// gone.
func (g *Group) Kill(ctx context.Context) error { return kill(ctx, g.box()) }

// kill does it again each second: kernels before Linux 6.14 can miss a child that is just
// being made.
func kill(ctx context.Context, dir string) error {
	end := time.Now().Add(killPatience)
	err := killOnce(ctx, dir)
	for ; errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil; err = killOnce(ctx, dir) {
		if time.Now().After(end) {
			pids, lerr := cgroups.GetAllPids(dir)
			return errors.Join(fmt.Errorf("kill the sandbox's processes: %v are still there after %v: %w", pids, killPatience, err), lerr)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("kill the sandbox's processes: %w", err)
	}
	return nil
}

func killOnce(ctx context.Context, dir string) error {
	err := cgroups.WriteFile(dir, "cgroup.kill", "1")
	if errors.Is(err, os.ErrNotExist) {
		err = killEach(ctx, dir)
	}
	if err != nil {
		return err
	}
	return until(ctx, dir, "cgroup.events", "populated", 0, time.Second)
}

// killEach is for kernels without cgroup.kill. Frozen processes make no new ones.
func killEach(ctx context.Context, dir string) error {
	if err := freeze(ctx, dir); err != nil {
		return err
	}
	pids, err := cgroups.GetAllPids(dir)
	if err != nil {
		return err
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			fd = -1 // it has ended, or will be found again
		}
		fds = append(fds, fd)
	}
	// One that was killed meanwhile may have left its number to another process,
	// which then is the one that was opened: only a number that is still here is ours.
	still, err := cgroups.GetAllPids(dir)
	if err != nil {
		return err
	}
	for i, pid := range pids {
		if fds[i] < 0 || !slices.Contains(still, pid) {
			continue
		}
		if err := unix.PidfdSendSignal(fds[i], unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
	}
	return cgroups.WriteFile(dir, "cgroup.freeze", "0")
}
