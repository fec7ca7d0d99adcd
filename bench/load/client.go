package load

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Agent is a running agent, seen from the bench.
type Agent struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan []byte
	log   *tail
	dead  error // set once the agent no longer answers
}

// Start starts cmd, which leads to an agent's Run, and waits until it answers.
func Start(cmd *exec.Cmd, timeout time.Duration) (*Agent, error) {
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	a := &Agent{cmd: cmd, in: in, lines: make(chan []byte, 4), log: new(tail)}
	cmd.Stderr = a.log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(a.lines)
		r := bufio.NewReaderSize(out, 1<<20)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				return
			}
			// What a peer prints on the way is not an answer.
			if bytes.HasPrefix(line, []byte("{")) {
				a.lines <- line
			} else {
				a.log.Write(line)
			}
		}
	}()
	if _, err := a.Call(Request{Op: "ping"}, timeout); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

// Pid is the process that Start started.
func (a *Agent) Pid() int { return a.cmd.Process.Pid }

// Call sends a request and waits for its answer. After a timeout the agent is of no
// more use, as a late answer would be taken for the next one.
func (a *Agent) Call(req Request, timeout time.Duration) (Reply, error) {
	if a.dead != nil {
		return Reply{}, a.dead
	}
	data, err := json.Marshal(req)
	if err != nil {
		return Reply{}, err
	}
	if _, err := a.in.Write(append(data, '\n')); err != nil {
		a.dead = a.ended()
		return Reply{}, a.dead
	}
	select {
	case line, ok := <-a.lines:
		if !ok {
			a.dead = a.ended()
			return Reply{}, a.dead
		}
		var rep Reply
		if err := json.Unmarshal(line, &rep); err != nil {
			return Reply{}, fmt.Errorf("answer %q: %w", line, err)
		}
		if rep.Err != "" {
			return rep, errors.New(rep.Err)
		}
		return rep, nil
	case <-time.After(timeout):
		a.dead = fmt.Errorf("%s: no answer in %v%s", req.Op, timeout, a.log)
		return Reply{}, a.dead
	}
}

func (a *Agent) ended() error { return fmt.Errorf("the sandbox has ended%s", a.log) }

// Close ends the agent and with it, usually, the sandbox around it.
func (a *Agent) Close() {
	a.in.Close()
	done := make(chan struct{})
	go func() { a.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		a.cmd.Process.Kill()
		<-done
	}
	if a.dead == nil {
		a.dead = errors.New("the agent is closed")
	}
}

// tail keeps the end of what a command says, for errors.
type tail struct {
	mu   sync.Mutex
	data []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data = append(t.data, p...)
	if n := len(t.data) - 600; n > 0 {
		t.data = t.data[n:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.TrimSpace(string(t.data))
	if s == "" {
		return ""
	}
	return ": " + s
}
