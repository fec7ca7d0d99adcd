package image

import (
	"context"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Inspection has the keys of "docker image inspect".
type Inspection struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Comment      string
	Created      string
	Author       string
	Config       InspectConfig
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	RootFS       InspectRootFS
	Metadata     InspectMetadata
	Descriptor   Descriptor
}

// InspectConfig has Docker's keys, present also when empty where Docker has them so.
type InspectConfig struct {
	User         string
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Env          []string
	Cmd          []string
	Healthcheck  *v1.HealthConfig `json:",omitempty"`
	ArgsEscaped  bool             `json:",omitempty"`
	Image        string
	Volumes      map[string]struct{}
	WorkingDir   string
	Entrypoint   []string
	OnBuild      []string
	Labels       map[string]string
	StopSignal   string   `json:",omitempty"`
	Shell        []string `json:",omitempty"`
}

// InspectRootFS lists the layers by DiffID.
type InspectRootFS struct {
	Type   string
	Layers []string `json:",omitempty"`
}

// InspectMetadata is about the store, not the image.
type InspectMetadata struct {
	LastTagTime time.Time
}

// Inspect describes an image as Docker does.
func (s *Store) Inspect(ctx context.Context, ref string) (*Inspection, error) {
	i, err := s.Get(ctx, ref)
	if err != nil {
		return nil, err
	}
	c := i.Config
	out := &Inspection{
		ID: i.ID, RepoTags: nonNil(i.Names), RepoDigests: nonNil(i.Digests),
		Author: c.Author, Architecture: c.Architecture, Variant: c.Variant, Os: c.OS, Size: i.Size,
		RootFS:   InspectRootFS{Type: "layers"},
		Metadata: InspectMetadata{LastTagTime: i.rec.Added}, Descriptor: i.Manifest,
		Config: InspectConfig{
			User: c.Config.User, ExposedPorts: c.Config.ExposedPorts, Env: c.Config.Env, Cmd: c.Config.Cmd,
			Healthcheck: c.Config.Healthcheck, ArgsEscaped: c.Config.ArgsEscaped, Image: c.Config.Image,
			Volumes: c.Config.Volumes, WorkingDir: c.Config.WorkingDir, Entrypoint: c.Config.Entrypoint,
			OnBuild: c.Config.OnBuild, Labels: c.Config.Labels, StopSignal: c.Config.StopSignal, Shell: c.Config.Shell,
		},
	}
	if !c.Created.IsZero() {
		out.Created = c.Created.UTC().Format(time.RFC3339Nano)
	}
	if n := len(c.History); n > 0 {
		out.Comment = c.History[n-1].Comment
	}
	for _, l := range i.Layers {
		out.RootFS.Layers = append(out.RootFS.Layers, l.DiffID)
	}
	return out, nil
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
