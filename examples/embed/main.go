// Command embed runs an image with a published port from a program of its own:
// no sbx command, no daemon, no root.
//
//	go run ./examples/embed [IMAGE [COMMAND...]]
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/rootless-sbx/sbx/portfwd"
	"github.com/rootless-sbx/sbx/sandbox"
)

func main() {
	sandbox.MaybeInit() // the sandbox's processes are started from this program
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"demo"}
	}
	ports, err := portfwd.ParsePublish([]string{"127.0.0.1::80"}) // a free port of the host
	if err != nil {
		return err
	}
	engine, err := sandbox.NewEngine(sandbox.Options{})
	if err != nil {
		return err
	}
	s, err := engine.Create(ctx, sandbox.Config{
		Image: args[0], Cmd: args[1:], Publish: ports,
		Stdout: os.Stdout, Stderr: os.Stderr,
	})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	fetchErr := fetch(ctx, fmt.Sprintf("http://127.0.0.1:%d/", s.Ports()[0].Spec.ParentPort))
	if err := s.Stop(context.Background()); err != nil {
		return err
	}
	status, err := s.Wait(context.Background())
	fmt.Println("exit status", status.Code)
	return errors.Join(fetchErr, err)
}

// fetch tries until the server inside listens.
func fetch(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		resp, err := http.Get(url)
		if err == nil {
			fmt.Println(url, resp.Status)
			return resp.Body.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
