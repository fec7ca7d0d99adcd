package sandbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
)

// callerConfig is as much of a Config as fits on a command line.
type callerConfig struct {
	RootFS, Name, PortDriver string
	Networks                 []sandbox.Attachment
	Cmd                      []string
	Publish                  []portfwd.Spec
	Mounts                   []fsoverlay.Mount
}

func callerOf(c sandbox.Config) callerConfig {
	return callerConfig{c.RootFS, c.Name, c.PortDriver, c.Networks, c.Cmd, c.Publish, c.Mounts}
}

// callerRole runs a sandbox until it is told to end. Its configuration comes on
// the command line, the sandbox's pid 1 goes to standard output.
func callerRole(args []string) error {
	e, err := helperEngine()
	if err != nil {
		return err
	}
	var c callerConfig
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return err
	}
	out := newLineWriter()
	cfg := sandbox.Config{RootFS: c.RootFS, Name: c.Name, Cmd: c.Cmd, Networks: c.Networks, PortDriver: c.PortDriver, Publish: c.Publish, Mounts: c.Mounts, Stdout: out}
	s, err := e.Create(context.Background(), cfg)
	if err != nil {
		return err
	}
	if len(args) > 1 { // is to be killed at any moment
		fmt.Println("created")
	}
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	<-out.first
	fmt.Println(s.Info().PID)
	io.Copy(io.Discard, os.Stdin)
	return s.Remove(context.Background())
}

// manyRole runs sandboxes one after the other and at the same time.
func manyRole(args []string) error {
	e, err := helperEngine()
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return runMany(e, n, sandbox.Config{RootFS: args[1], Cmd: []string{"sh", "-c", "echo hello; exit 3"}, Networks: sandbox.On(args[2])})
}

// runMany runs n sandboxes at the same time.
func runMany(e *sandbox.Engine, n int, cfg sandbox.Config) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = runOne(e, cfg) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func runOne(e *sandbox.Engine, cfg sandbox.Config) error {
	var out bytes.Buffer
	cfg.Stdout = &out
	s, err := e.Create(context.Background(), cfg)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	if err := s.Start(context.Background()); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	st, err := s.Wait(context.Background())
	if err != nil || st.Code != 3 || out.String() != "hello\n" {
		return fmt.Errorf("wait: %+v, %q, %v", st, out.String(), err)
	}
	return nil
}

func diagnoseRole([]string) error {
	r := sandbox.Diagnose(context.Background(), sandbox.Options{DataDir: os.Args[1], RuntimeDir: os.Args[2]})
	return json.NewEncoder(os.Stdout).Encode(r)
}
