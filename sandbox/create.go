package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rootless-sbx/sbx/fsoverlay"
	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox/internal/boxdir"
	"github.com/rootless-sbx/sbx/sandbox/internal/events"
	"github.com/rootless-sbx/sbx/sandbox/internal/record"
	"github.com/rootless-sbx/sbx/sandbox/internal/workload"
)

// Create resolves cfg: the image is pulled and unpacked if it must be, and a
// directory is made. Nothing runs yet. The caller ends with Start and Wait, with
// Save, or with Remove; else nothing is left of it. When ctx ends first, Create
// fails with its cause.
func (e *Engine) Create(ctx context.Context, cfg Config) (*Sandbox, error) {
	s := &Sandbox{e: e, cfg: cfg, id: workload.NewID(), name: cfg.Name, done: make(chan struct{}), marks: newTimings()}
	if err := s.checkConfig(); err != nil {
		return nil, err
	}
	s.marks.add("configuration checked")
	s.swept = make(chan struct{})
	go func() {
		defer close(s.swept)
		e.sweepNow(ctx)
	}()
	err := s.prepare(ctx)
	if err == nil {
		s.event(events.Create)
		s.announced = true
		return s, nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	s.release(context.WithoutCancel(ctx))
	return nil, err
}

// awaitSweep waits until Create has looked for left-overs, which it does beside the rest:
// among hundreds of sandboxes it takes milliseconds.
func (s *Sandbox) awaitSweep() {
	if s.swept != nil {
		<-s.swept
	}
}

func (s *Sandbox) prepare(ctx context.Context) error {
	if err := s.resolveShared(ctx); err != nil {
		return err
	}
	p, err := s.e.resolve(ctx, s.cfg.UserNS)
	if err != nil {
		return err
	}
	if s.driver, err = fsoverlay.Choose(p.storage, s.cfg.StorageDriver); err != nil {
		return err
	}
	s.mapping = p.mapping
	if s.mapping.Reason != "" {
		s.notes = append(s.notes, s.mapping.Reason)
	}
	s.marks.add("ids and storage chosen")
	imgCfg, err := s.openImage(ctx, p)
	if err != nil {
		return err
	}
	s.marks.add("image found")
	if err := s.claim(ctx); err != nil {
		return err
	}
	s.marks.add("directory made")
	if err := s.resolve(imgCfg); err != nil {
		return err
	}
	s.stdio, err = newStdio(s.cfg.streams(), s.cfg.TTY, s.start.Life.Log != nil)
	s.marks.add("configuration resolved")
	return err
}

// undoTime is how long a sandbox that is removed, or whose start was given up, may take
// to let go of its name.
const undoTime = 2 * time.Second

// claim makes the directory and takes the name. A name that only a killed sandbox
// has is taken from it; one that is just being started, given up or removed is waited
// for.
func (s *Sandbox) claim(ctx context.Context) error {
	for end := time.Now().Add(undoTime); ; {
		holder := ""
		dir, err := boxdir.Create(ctx, s.e.containers(), s.id, func(taken map[string]string) (string, error) {
			if s.cfg.Name == "" {
				for n := 0; s.name == "" || taken[s.name] != ""; n++ {
					s.name = workload.RandomName(n)
				}
			}
			if holder = taken[s.name]; holder != "" {
				return "", nameInUse(s.name, holder)
			}
			return s.name, nil
		})
		if err == nil {
			s.dir = dir
			return nil
		}
		if holder == "" {
			return err
		}
		s.awaitSweep() // which may be about the holder
		swept, serr := s.e.sweepOne(ctx, holder)
		if _, nerr := boxdir.Name(s.e.containers(), holder); errors.Is(nerr, fs.ErrNotExist) {
			continue // it is free now
		}
		if serr != nil || !swept && (!record.Starting(filepath.Join(s.e.containers(), holder)) || time.Now().After(end)) {
			return errors.Join(err, serr)
		}
		if !swept {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// openImage finds or pulls the image and holds its layers.
func (s *Sandbox) openImage(ctx context.Context, p *platform) (v1.Config, error) {
	if s.cfg.RootFS != "" {
		return v1.Config{}, s.openRootFS()
	}
	store, err := s.e.Images()
	if err != nil {
		return v1.Config{}, err
	}
	img, err := s.findImage(ctx, store)
	if err != nil {
		return v1.Config{}, err
	}
	if s.lease, err = store.Acquire(ctx, img, s.mapping.Key()); err != nil {
		return v1.Config{}, fmt.Errorf("unpack %s: %w", s.cfg.Image, err)
	}
	s.lowers, s.imageID = s.lease.Layers, img.ID
	if s.lease.WhiteoutFiles && s.driver == fsoverlay.DriverNative {
		// Unpacked where whiteouts cannot be made, e.g. in a container that
		// shares this data directory.
		if s.driver, err = fsoverlay.Choose(withoutNative(p.storage), s.cfg.StorageDriver); err != nil {
			return v1.Config{}, err
		}
	}
	return img.Config.Config, nil
}

// withoutNative takes the kernel's overlay out, which does not read whiteouts that
// are files.
func withoutNative(results []fsoverlay.ProbeResult) []fsoverlay.ProbeResult {
	out := slices.Clone(results)
	for i := range out {
		if out[i].Driver == fsoverlay.DriverNative {
			out[i].OK, out[i].Reason = false, "the image's layers mark removed files by other files"
			out[i].Fix = "remove the image and pull it again"
		}
	}
	return out
}

func (s *Sandbox) findImage(ctx context.Context, store *image.Store) (*image.Image, error) {
	if s.cfg.Image == image.DemoName {
		return store.Demo(ctx, s.e.initPath)
	}
	if s.cfg.Pull != PullAlways {
		img, err := store.Get(ctx, s.cfg.Image)
		if err == nil {
			if err = s.checkPlatform(img); err == nil {
				return img, nil
			}
		} else if !errors.Is(err, image.ErrNotFound) {
			return nil, err
		}
		if s.cfg.Pull == PullNever {
			return nil, fmt.Errorf("%w; it is not pulled because of --pull never", err)
		}
	}
	return store.Pull(ctx, s.cfg.Image, image.PullOptions{
		Platform: s.cfg.Platform, Insecure: s.cfg.Insecure, Progress: s.cfg.Progress,
	})
}

// checkPlatform says whether a local image is for the platform that was asked for.
// One that is for another machine runs if nobody asked, as with Docker: there may
// be an emulator.
func (s *Sandbox) checkPlatform(img *image.Image) error {
	want, err := image.ParsePlatform(s.cfg.Platform)
	if err != nil {
		return err
	}
	have, err := image.ParsePlatform(img.Platform.String())
	if err != nil || img.Platform.OS == "" {
		return nil // it does not say what it is for
	}
	same := want.OS == have.OS && want.Architecture == have.Architecture
	switch {
	case same && (want.Variant == have.Variant || want.Variant == "" || have.Variant == ""):
		return nil
	case s.cfg.Platform == "":
		note := fmt.Sprintf("the image is for %s, this machine is %s", have, want)
		if have.Architecture == "386" {
			note += "; --platform linux/386 lets 32-bit programs make sockets"
		}
		s.notes = append(s.notes, note)
		return nil
	}
	return fmt.Errorf("%w: the local image %s is for %s, not %s", image.ErrPlatform, s.cfg.Image, have, want)
}
