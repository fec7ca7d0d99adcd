// Package demo is the workload of the built-in image "demo": a small web server
// with a few probes of the sandbox that it is in.
package demo

import (
	"context"
	"errors"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// Role is argv[0] of the server, which the demo image names as its entrypoint.
const Role = "sbx-demo"

// Main is the body of the server: it listens on port 80, or on the address in
// args, until it is asked to end.
func Main(args []string) error {
	addr := ":80"
	if len(args) > 0 {
		addr = args[0]
	}
	// As pid 1 it would not get these by default.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return serve(ctx, addr)
}

func serve(ctx context.Context, addr string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", page)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("GET /lookup", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		addrs, err := net.DefaultResolver.LookupHost(ctx, r.URL.Query().Get("name"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, strings.Join(addrs, "\n"))
	})
	srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Printf("demo: listening on %s\n", ln.Addr())
	go func() {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		srv.Shutdown(sctx)
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

var pageTemplate = template.Must(template.New("demo").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>It works</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:3em auto;padding:0 1em}
td{padding:.1em 1em .1em 0;vertical-align:top}code{background:#eee;padding:.1em .3em}</style></head><body>
<h1>It works</h1>
<p>This page comes from a sandbox that was started without root and without a daemon.</p>
<table>{{range .}}<tr><td>{{.Name}}</td><td><code>{{.Value}}</code></td></tr>
{{end}}</table>
<p>Try <code>/client</code>, <code>/lookup?name=example.org</code> and <code>/healthz</code> too.</p>
</body></html>
`))

func page(w http.ResponseWriter, r *http.Request) {
	type row struct{ Name, Value string }
	host, _ := os.Hostname()
	rows := []row{
		{"host name", host},
		{"your address, as the server sees it", r.RemoteAddr},
		{"process id of the server", fmt.Sprint(os.Getpid())},
		{"user and group", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())},
	}
	for _, f := range []string{"/proc/self/uid_map", "/etc/resolv.conf"} {
		if b, err := os.ReadFile(f); err == nil {
			rows = append(rows, row{f, strings.TrimSpace(string(b))})
		}
	}
	if ifs, err := net.Interfaces(); err == nil {
		for _, i := range ifs {
			addrs, _ := i.Addrs()
			rows = append(rows, row{"interface " + i.Name, fmt.Sprintf("mtu %d %v", i.MTU, addrs)})
		}
	}
	rows = append(rows, row{"program", runtime.Version() + " " + runtime.GOARCH})
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	pageTemplate.Execute(w, rows)
}
