package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// registry talks to one repository. go-containerregistry does the log-in
// (basic, bearer tokens and their renewal); requests, retries and checks of what
// comes back are done here, because a blob must be counted, verified and
// cancelled while its bytes arrive.
type registry struct {
	s      *Store
	ref    name.Reference
	base   *http.Transport
	client *http.Client
	prog   *progress
}

const maxRedirects = 10

// connect finds out how the registry wants to be spoken to, and logs in.
func (s *Store) connect(ctx context.Context, r Reference, insecure bool, prog *progress) (*registry, error) {
	host := r.Domain
	insecure = insecure || slices.Contains(s.cfg.Insecure, host) || slices.Contains(s.cfg.Insecure, hostOnly(host))
	ref, err := r.remote(insecure || isLoopback(hostOnly(host)))
	if err != nil {
		return nil, err
	}
	tc := &tls.Config{}
	if s.cfg.TLS != nil {
		tc = s.cfg.TLS.Clone()
	}
	if insecure {
		tc.InsecureSkipVerify = true
	}
	c := &registry{s: s, ref: ref, prog: prog, base: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       tc,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: s.cfg.StallTimeout,
		MaxIdleConnsPerHost:   s.cfg.Downloads + 1,
		IdleConnTimeout:       30 * time.Second,
	}}
	err = c.retry(ctx, ref.String(), func() error {
		auth, err := authn.Resolve(ctx, s.cfg.Keychain, ref.Context())
		if err != nil {
			return &Error{Kind: ErrUnauthorized, Op: "read credentials for", Subject: host, Err: err}
		}
		rt, err := transport.NewWithContext(ctx, ref.Context().Registry, auth, &guard{next: c.base, plain: insecure}, []string{ref.Scope(transport.PullScope)})
		if err != nil {
			return err
		}
		c.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
		return nil
	})
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *registry) close() { c.base.CloseIdleConnections() }

// guard lets plain HTTP through to loopback hosts and for registries declared
// insecure only, whoever asks for it: a redirect, a token service, or
// go-containerregistry, which would talk it to private addresses.
type guard struct {
	next  http.RoundTripper
	plain bool
}

var errPlainHTTP = errors.New("refused to use plain HTTP")

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.plain && !isLoopback(r.URL.Hostname()) {
		return nil, fmt.Errorf("%w to %s", errPlainHTTP, r.URL.Host)
	}
	return g.next.RoundTrip(r)
}

// checkRedirect keeps a public registry from sending us to services of the
// user's own network.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return fmt.Errorf("more than %d redirects", maxRedirects)
	}
	from, to := via[0].URL.Hostname(), req.URL.Hostname()
	if from != to && isPrivate(to) && !isPrivate(from) {
		return fmt.Errorf("the registry at %s redirects to the private address %s", from, to)
	}
	return nil
}

func isPrivate(host string) bool {
	if isLoopback(host) {
		return true
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		// The resolver also takes forms such as 0x7f.1.
		last := host[strings.LastIndexByte(host, '.')+1:]
		_, err := strconv.ParseUint(last, 0, 64)
		return err == nil
	}
	a = a.WithZone("").Unmap()
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsUnspecified() || a.IsLoopback()
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}

func hostOnly(hostport string) string {
	h, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return strings.Trim(hostport, "[]")
	}
	return h
}

// get asks for a manifest or blob of the repository. The body stalls with an
// error instead of for ever. The caller closes it.
func (c *registry) get(ctx context.Context, kind, id, accept string) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	u := url.URL{Scheme: "https", Host: c.ref.Context().RegistryStr(), Path: "/v2/" + c.ref.Context().RepositoryStr() + "/" + kind + "/" + id}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(err)
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		cancel(err)
		return nil, err
	}
	resp.Body = newStallReader(ctx, cancel, resp.Body, c.s.cfg.StallTimeout)
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		resp.Body.Close()
		return nil, &statusError{Err: err, after: retryAfter(resp)}
	}
	return resp, nil
}

// statusError carries what Retry-After said.
type statusError struct {
	Err   error
	after time.Duration
}

func (e *statusError) Error() string { return e.Err.Error() }
func (e *statusError) Unwrap() error { return e.Err }

func retryAfter(resp *http.Response) time.Duration {
	n, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if err != nil || n < 0 {
		return 0
	}
	return min(time.Duration(n)*time.Second, 30*time.Second)
}

var errStalled = errors.New("nothing came from the registry for too long")

type stallReader struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	timer  *time.Timer
	limit  time.Duration
}

func newStallReader(ctx context.Context, cancel context.CancelCauseFunc, body io.ReadCloser, limit time.Duration) *stallReader {
	return &stallReader{ctx: ctx, cancel: cancel, body: body, limit: limit,
		timer: time.AfterFunc(limit, func() { cancel(errStalled) })}
}

func (s *stallReader) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if n > 0 {
		s.timer.Reset(s.limit)
	}
	if err != nil && !errors.Is(err, io.EOF) && s.ctx.Err() != nil {
		err = context.Cause(s.ctx)
	}
	return n, err
}

func (s *stallReader) Close() error {
	s.timer.Stop()
	err := s.body.Close()
	s.cancel(nil)
	return err
}

// retry repeats fn while its error may be a passing one.
func (c *registry) retry(ctx context.Context, what string, fn func() error) error {
	wait := c.s.cfg.Backoff
	for try := 0; ; try++ {
		err := fn()
		if err == nil || ctx.Err() != nil || try >= c.s.cfg.Retries || !transient(err) {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		c.s.log.Info("registry request failed, trying again", "what", what, "try", try+1, "err", err)
		c.prog.emit(Event{Layer: what, Phase: PhaseRetry, Err: err})
		d := wait + time.Duration(rand.Int64N(int64(wait)/4+1))
		var se *statusError
		if errors.As(err, &se) {
			d = max(d, se.after)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(d):
		}
		wait = min(wait*2, 30*time.Second)
	}
}

// transient tells errors that may pass. A connection that was refused and a
// name that does not exist will not, within the seconds that retrying takes.
func transient(err error) bool {
	var (
		e   *Error
		te  *transport.Error
		dns *net.DNSError
		ue  *url.Error
		ne  net.Error
	)
	switch {
	case errors.As(err, &te):
		switch te.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
			http.StatusServiceUnavailable, http.StatusGatewayTimeout, 499, 522:
			return true
		}
		return false
	case errors.Is(err, errPlainHTTP), errors.Is(err, context.Canceled), isTLS(err),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsNotFound
	case errors.Is(err, errStalled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return true
	case errors.As(err, &e):
		return false
	case errors.As(err, &ue), errors.As(err, &ne):
		return true
	}
	return false
}

func isTLS(err error) bool {
	var (
		cert *tls.CertificateVerificationError
		auth x509.UnknownAuthorityError
		host x509.HostnameError
		rec  tls.RecordHeaderError
	)
	return errors.As(err, &cert) || errors.As(err, &auth) || errors.As(err, &host) || errors.As(err, &rec)
}

// explainPull gives an error of the registry its kind and a hint.

func explainPull(r Reference, err error) error {
	var e *Error
	var le *LimitError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &le):
		return fmt.Errorf("pull %s: %w", r, err)
	case errors.As(err, &e) && e.Kind != nil:
		return fmt.Errorf("pull %s: %w", r, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS):
		return classify("pull", r.String(), err)
	}
	out := &Error{Kind: ErrUnreachable, Op: "pull", Subject: r.String(), Err: redact(err)}
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusNotFound:
			out.Kind, out.Msg = ErrNotFound, r.Domain+" does not have it"
			out.Fix = "check the name and the tag"
		case http.StatusUnauthorized, http.StatusForbidden:
			out.Kind, out.Msg = ErrNotFound, "it does not exist, or "+r.Domain+" wants credentials for it"
			out.Err = errors.Join(ErrUnauthorized, out.Err)
			out.Fix = "check the name; for a private image log in with docker login " + r.Domain + " or podman login " + r.Domain
		case http.StatusTooManyRequests:
			out.Msg, out.Fix = r.Domain+" limits the rate of pulls", "wait, or log in for a higher limit"
		default:
			out.Msg = r.Domain + " does not work as a registry"
		}
		return out
	}
	out.Msg = "cannot talk to " + r.Domain
	var rec tls.RecordHeaderError
	switch {
	case errors.Is(err, errPlainHTTP), errors.As(err, &rec):
		out.Fix = "if it really has no TLS, declare it insecure"
	case isTLS(err):
		out.Fix = "install its certificate authority, or declare the registry insecure"
	default:
		out.Fix = "check the name of the registry and the network, also HTTPS_PROXY"
	}
	return out
}

// redact drops queries from addresses: those of redirects are signed.
func redact(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		if i := strings.IndexByte(ue.URL, '?'); i >= 0 {
			ue.URL = ue.URL[:i]
		}
	}
	return err
}
