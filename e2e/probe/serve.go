package probe

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// Stream returns n bytes that are the same for the same seed.
func Stream(n int64, seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// Sum returns the length and the SHA-256 of what it reads, in the form in which /sum answers.
func Sum(r io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(h, r, make([]byte, 256<<10))
	return fmt.Sprintf("%d %s", n, hex.EncodeToString(h.Sum(nil))), err
}

// Handler serves /client (the address the request came from), /bytes?n=N&seed=S,
// /sum (of the request's body), and /fetch?url=U and /ask?network=N&addr=A (what this
// side gets from there).
func Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "probe %s\n", r.URL.Path) })
	mux.HandleFunc("/client", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, r.RemoteAddr) })
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err1 := strconv.ParseInt(r.FormValue("n"), 10, 64)
		seed, err2 := strconv.ParseUint(r.FormValue("seed"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyBuffer(struct{ io.Writer }{w}, Stream(n, seed), make([]byte, 256<<10)) // the client notices a short body
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		sum, err := Sum(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, sum)
	})
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		resp, err := Client().Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client notices a short body
	})
	mux.HandleFunc("/ask", func(w http.ResponseWriter, r *http.Request) {
		answer, err := Ask(r.FormValue("network"), r.FormValue("addr"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprintln(w, answer)
	})
	return mux
}

func serve(ports []string) error {
	errs := make(chan error)
	for _, p := range ports {
		l, err := net.Listen("tcp", listenAddr(p))
		if err != nil {
			return err
		}
		go func() { errs <- http.Serve(l, Handler()) }()
	}
	ready()
	return <-errs
}

func listenAddr(p string) string {
	if strings.Contains(p, ":") {
		return p
	}
	return ":" + p
}

// ready prints the addresses of this machine or sandbox once the listeners stand.
func ready() {
	var out []string
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe: addresses:", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	fmt.Println("ready", strings.Join(out, " "))
}

// echo listens where it is told, and not on the wildcard address if the machine has
// several: a datagram's answer must come from where it was sent to.
func echo(addrs []string) error {
	errs := make(chan error)
	for _, a := range addrs {
		l, err := net.Listen("tcp", listenAddr(a))
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", listenAddr(a))
		if err != nil {
			return err
		}
		go func() { errs <- echoUDP(u) }()
		go func() { errs <- EchoTCP(l) }()
	}
	ready()
	return <-errs
}

// EchoTCP sends back what each connection of l sends, until l fails.
func EchoTCP(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the client sees what is missing
		}()
	}
}

func echoUDP(u net.PacketConn) error {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := u.ReadFrom(buf)
		if err != nil {
			return err
		}
		if _, err := u.WriteTo(buf[:n], from); err != nil {
			fmt.Fprintln(os.Stderr, "probe: echo:", err)
		}
	}
}
