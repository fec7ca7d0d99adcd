package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// storeChild is a process that works with a store: its mode is what it does.
func storeChild(mode string) int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if mode == "full" {
		if err := fullChild(ctx, os.Getenv("SBX_ROOT"), os.Getenv("SBX_ARG")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	cfg := Config{Root: os.Getenv("SBX_ROOT"), Backoff: time.Millisecond}
	if path := os.Getenv("SBX_JOBS"); path != "" {
		cfg.Unpack = counting(unpackHere, func(job string) {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
			if err == nil {
				_, err = fmt.Fprintln(f, job)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		})
	}
	s, err := Open(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "open:", err)
		return 1
	}
	arg := os.Getenv("SBX_ARG")
	var imgs []*Image
	use := func() error {
		for _, i := range imgs {
			l, err := s.Acquire(ctx, i, "child")
			if err != nil {
				return err
			}
			for _, d := range l.Layers {
				if _, err := os.Stat(d); err != nil {
					return fmt.Errorf("a leased layer is gone: %w", err)
				}
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
		return nil
	}
	// A removal by another process may come between any two steps.
	gone := func(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, ErrInUse) }
	switch mode {
	case "pull":
		var i *Image
		if i, err = s.Pull(ctx, arg, PullOptions{}); err == nil {
			imgs = []*Image{i}
			err = use()
		}
	case "load":
		if imgs, err = s.Load(ctx, arg, LoadOptions{}); err == nil {
			err = use()
		}
	case "churn": // everything, until killed
		for n := 0; err == nil; n++ {
			var i *Image
			if n%2 == 0 {
				if i, err = s.Pull(ctx, arg, PullOptions{}); err == nil {
					imgs = []*Image{i}
				}
			} else {
				imgs, err = s.Load(ctx, os.Getenv("SBX_ARCHIVE"), LoadOptions{})
			}
			if err == nil {
				err = use()
			}
			if err == nil {
				_, err = s.Remove(ctx, imgs[0].ID, true)
			}
			if gone(err) {
				err = nil
			}
			if os.Getenv("SBX_ROUNDS") != "" && n == 4 {
				break
			}
		}
	default:
		err = fmt.Errorf("unknown mode %q", mode)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", mode, err)
		return 1
	}
	return 0
}

func child(t *testing.T, mode, root, arg string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), modeEnv+"="+mode, "SBX_ROOT="+root, "SBX_ARG="+arg), env...)
	cmd.Stderr = os.Stderr
	return cmd
}
