package sandbox

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/proto"
)

// CommitOptions describe the image that Commit makes.
type CommitOptions struct {
	// Name, with a tag or not; empty: it is found by its id.
	Name string
	// Author and Message go into its history.
	Author, Message string
	// Changes are instructions of a Dockerfile, see image.ApplyChanges.
	Changes []string
	// NoPause lets the sandbox run on while its files are read. Without a cgroup it
	// does in any case.
	NoPause bool
}

// Commit makes an image of the sandbox: its image with a layer of what has changed, and
// its configuration. If it fails there is none. What is in volumes is not in it.
func (s *Sandbox) Commit(ctx context.Context, o CommitOptions) (*image.Image, Copied, error) {
	var res Copied
	cfg, err := s.imageConfig(ctx)
	if err == nil {
		err = image.ApplyChanges(&cfg, o.Changes)
	}
	if err != nil {
		return nil, res, err
	}
	store, err := s.e.Images()
	if err != nil {
		return nil, res, err
	}
	opts := image.CommitOptions{
		Base: s.rec.ImageID, Config: cfg, Name: o.Name,
		Author: o.Author, Comment: o.Message, CreatedBy: strings.Join(slices.Concat(s.rec.Entrypoint, s.rec.Cmd), " "),
	}
	if s.rec.ImageID != "" {
		p, err := s.e.resolve(ctx, s.rec.UserNS)
		if err != nil {
			return nil, res, err
		}
		lease, err := s.acquire(ctx, p.mapping)
		if err != nil {
			return nil, res, err
		}
		defer lease.Close()
	}
	if !o.NoPause {
		goOn, err := s.hold(ctx)
		if err != nil {
			return nil, res, err
		}
		defer goOn()
	}
	what := proto.TreeLayer
	if s.rec.ImageID == "" { // of a directory: all of it
		what = proto.TreeAll
	}
	opts.Layer = func(ctx context.Context, w io.Writer) (int64, error) {
		var err error
		res, err = s.tree(ctx, what, func(r *os.File) error {
			_, err := io.Copy(w, r)
			return err
		})
		return res.Entries, err
	}
	img, err := store.Commit(ctx, opts)
	if err == nil {
		s.event(events.Commit, "comment", o.Message, "imageID", img.ID, "imageRef", o.Name)
	}
	return img, res, err
}

// imageConfig is what another sandbox must be told to be as this one.
func (s *Sandbox) imageConfig(ctx context.Context) (v1.Config, error) {
	in, err := s.Inspect(ctx)
	if err != nil {
		return v1.Config{}, err
	}
	c := &in.Config
	cfg := v1.Config{
		User: c.User, ExposedPorts: c.ExposedPorts, Cmd: c.Cmd, Entrypoint: c.Entrypoint, Volumes: c.Volumes,
		WorkingDir: c.WorkingDir, Labels: c.Labels, StopSignal: c.StopSignal,
	}
	for _, kv := range c.Env { // those that each sandbox gets for itself are not the image's
		if kv != "HOSTNAME="+c.Hostname && (kv != "TERM=xterm" || !c.Tty) {
			cfg.Env = append(cfg.Env, kv)
		}
	}
	if h := c.Healthcheck; h != nil {
		cfg.Healthcheck = &v1.HealthConfig{Test: h.Test, Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries}
	}
	if s.rec.ImageID == "" {
		return cfg, nil
	}
	store, err := s.e.Images()
	if err != nil {
		return cfg, err
	}
	img, err := store.Get(ctx, s.rec.ImageID)
	if err == nil {
		cfg.Shell = img.Config.Config.Shell
	}
	return cfg, err
}

// hold lets every process of a sandbox that runs stand still until goOn is called, or
// this process ends.
func (s *Sandbox) hold(ctx context.Context) (goOn func(), err error) {
	st, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	nothing := func() {}
	if !st.Alive() {
		return nothing, nil
	}
	c, err := s.dial(ctx)
	if isGone(err) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := c.Call(ctx, proto.MsgHold, nil, nil)
	if err != nil {
		c.close()
		if err = s.controlError(err); isGone(err) {
			return nothing, nil // it has ended just now
		}
		return nil, err
	}
	m.CloseFiles()
	return c.close, nil
}
