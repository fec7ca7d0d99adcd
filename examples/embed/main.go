// Command embed runs an image with a published port from a program of its own:
// no sbx command, no daemon, no root.
//
//	go run ./examples/embed [IMAGE [COMMAND...]]
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"

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
	url := fmt.Sprintf("http://127.0.0.1:%d/", s.Ports()[0].Spec.ParentPort)
	if err := fetch(ctx, url); err != nil {
		log.Print(err)
	}
	if err := s.Stop(context.Background()); err != nil {
		return err
	}
	status, err := s.Wait(context.Background())
	fmt.Println("exit status", status.Code)
	return err
}

func fetch(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s, %d bytes\n", url, resp.Status, len(body))
	return err
}
