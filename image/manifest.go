package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	mtOCIManifest    = string(types.OCIManifestSchema1)
	mtOCIIndex       = string(types.OCIImageIndex)
	mtDockerManifest = string(types.DockerManifestSchema2)
	mtDockerList     = string(types.DockerManifestList)
	mtOCIConfig      = string(types.OCIConfigJSON)
	mtDockerConfig   = string(types.DockerConfigJSON)
	mtOCILayer       = string(types.OCIUncompressedLayer)
)

// mediaKind tells what a media type is of, or why it is refused.
func mediaKind(mt string) (kind string, err error) {
	refuse := func(msg, fix string) (string, error) {
		return "", &Error{Kind: ErrMediaType, Subject: fmt.Sprintf("media type %q", mt), Msg: msg, Fix: fix}
	}
	base, _, _ := strings.Cut(mt, ";")
	switch strings.TrimSpace(base) {
	case mtOCIManifest, mtDockerManifest:
		return "manifest", nil
	case mtOCIIndex, mtDockerList:
		return "index", nil
	case mtOCIConfig, mtDockerConfig:
		return "config", nil
	case string(types.OCILayer), string(types.OCILayerZStd), string(types.OCIUncompressedLayer),
		string(types.DockerLayer), string(types.DockerUncompressedLayer),
		"application/vnd.docker.image.rootfs.diff.tar.zstd":
		return "layer", nil
	case string(types.DockerManifestSchema1), string(types.DockerManifestSchema1Signed):
		return refuse("manifests of schema 1 are not supported, nor by Docker since version 28", "have its publisher push it again with a current tool")
	case string(types.DockerForeignLayer), string(types.OCIRestrictedLayer), string(types.OCIUncompressedRestrictedLayer),
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return refuse("a foreign layer, whose content the registry does not have (as in images for Windows)", "")
	case string(types.DockerPluginConfig):
		return refuse("a Docker plug-in, not an image", "")
	}
	if strings.HasSuffix(base, "+encrypted") || strings.Contains(base, "+encrypted") {
		return refuse("the layer is encrypted; decrypting is not supported", "decrypt the image with a tool that has the key, then load it")
	}
	return refuse("not an image of a known format; it may be another kind of artifact", "")
}

// parsed is a manifest or an index, whichever it is.
type parsed struct {
	manifest *v1.Manifest
	index    *v1.IndexManifest
	media    string
}

// parseManifest reads a manifest or index. media is what the registry or the
// descriptor says it is; empty if unknown. What the document itself says must
// agree, so that one content cannot be taken for two things.
func parseManifest(b []byte, media string) (*parsed, error) {
	var probe struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Layers        []json.RawMessage `json:"layers"`
		FSLayers      []json.RawMessage `json:"fsLayers"`
		Config        json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(b, &probe); err != nil {
		return nil, &Error{Kind: ErrManifest, Op: "read manifest", Err: err}
	}
	bad := func(format string, args ...any) (*parsed, error) {
		return nil, &Error{Kind: ErrManifest, Op: "read manifest", Msg: fmt.Sprintf(format, args...)}
	}
	if probe.SchemaVersion == 1 || probe.FSLayers != nil {
		_, err := mediaKind(string(types.DockerManifestSchema1))
		return nil, err
	}
	if i := strings.IndexByte(media, ';'); i >= 0 {
		media = strings.TrimSpace(media[:i])
	}
	switch media {
	case "", "application/json", "application/octet-stream", "text/plain":
		media = "" // registries on plain web servers say nothing better
	}
	switch {
	case media != "" && probe.MediaType != "" && media != probe.MediaType:
		return bad("it calls itself %q and was announced as %q", probe.MediaType, media)
	case media == "" && probe.MediaType != "":
		media = probe.MediaType
	case media == "" && probe.Manifests != nil:
		media = mtOCIIndex
	case media == "":
		media = mtOCIManifest
	}
	kind, err := mediaKind(media)
	if err != nil {
		return nil, err
	}
	if probe.SchemaVersion != 2 {
		return bad("schema version %d", probe.SchemaVersion)
	}
	p := &parsed{media: media}
	switch kind {
	case "index":
		if probe.Layers != nil || probe.Config != nil {
			return bad("an index with layers")
		}
		p.index, err = v1.ParseIndexManifest(bytes.NewReader(b))
	case "manifest":
		if probe.Manifests != nil {
			return bad("a manifest that lists manifests")
		}
		p.manifest, err = v1.ParseManifest(bytes.NewReader(b))
	default:
		return bad("%q is a %s", media, kind)
	}
	if err != nil {
		return nil, &Error{Kind: ErrManifest, Op: "read manifest", Err: err}
	}
	return p, nil
}

// descriptor takes over a descriptor of a document after checking it.
func descriptor(d v1.Descriptor, kind string, limit int64) (Descriptor, error) {
	out := Descriptor{MediaType: string(d.MediaType), Digest: d.Digest.String(), Size: d.Size}
	got, err := mediaKind(out.MediaType)
	if err != nil {
		return out, err
	}
	bad := func(format string, args ...any) (Descriptor, error) {
		return out, &Error{Kind: ErrManifest, Op: "read manifest", Subject: out.Digest, Msg: fmt.Sprintf(format, args...)}
	}
	switch {
	case got != kind:
		return bad("a %s where a %s belongs", got, kind)
	case !validDigest(out.Digest):
		return bad("only sha256 digests are supported")
	case d.Size < 0:
		return bad("negative size")
	case d.Size > limit:
		return out, &LimitError{What: "of bytes of a " + kind, Limit: limit, Got: d.Size, Path: out.Digest}
	}
	return out, nil
}

// newRecord turns a manifest into a record without DiffIDs, which come with the
// configuration.
func (s *Store) newRecord(m *v1.Manifest, desc Descriptor) (*record, error) {
	if len(m.Layers) > s.limits.Layers {
		return nil, &LimitError{What: "Layers", Limit: int64(s.limits.Layers), Got: int64(len(m.Layers))}
	}
	r := &record{Manifest: desc}
	var err error
	if r.Config, err = descriptor(m.Config, "config", s.limits.Config); err != nil {
		return nil, err
	}
	r.ID = r.Config.Digest
	for _, l := range m.Layers {
		d, err := descriptor(l, "layer", s.limits.Bytes)
		if err != nil {
			return nil, err
		}
		r.Layers = append(r.Layers, Layer{Descriptor: d})
	}
	return r, nil
}

// parseConfig reads an image's configuration and checks it against what the
// manifest lists.
func parseConfig(b []byte, layers int) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(b))
	if err != nil {
		return nil, &Error{Kind: ErrManifest, Op: "read image configuration", Err: err}
	}
	bad := func(format string, args ...any) (*v1.ConfigFile, error) {
		return nil, &Error{Kind: ErrManifest, Op: "read image configuration", Msg: fmt.Sprintf(format, args...)}
	}
	if len(c.RootFS.DiffIDs) != layers {
		return bad("it lists %d layers, the manifest %d", len(c.RootFS.DiffIDs), layers)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !validDigest(d.String()) {
			return bad("bad layer digest %q", d)
		}
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return bad("root file system of type %q", c.RootFS.Type)
	}
	return c, nil
}

// setConfig completes the record from its configuration.
func (r *record) setConfig(b []byte) (*v1.ConfigFile, error) {
	c, err := parseConfig(b, len(r.Layers))
	if err != nil {
		return nil, err
	}
	for i, d := range c.RootFS.DiffIDs {
		r.Layers[i].DiffID = d.String()
	}
	return c, nil
}

// checkOS refuses what cannot run here at all.
func checkOS(c *v1.ConfigFile, subject string) error {
	if c.OS != "" && c.OS != "linux" {
		return &Error{Kind: ErrPlatform, Subject: subject, Msg: fmt.Sprintf("an image for %s; only linux can run here", c.OS)}
	}
	return nil
}

// enter puts the record into the index, under the names given.
func (x *index) enter(r *record, names ...string) {
	if old := x.Images[r.ID]; old != nil {
		for _, d := range old.Digests {
			r.addDigest(d)
		}
	}
	// A digest of an index names the image that was chosen from it last.
	for _, other := range x.Images {
		if other.ID != r.ID {
			other.Digests = slices.DeleteFunc(other.Digests, func(d string) bool { return slices.Contains(r.Digests, d) })
		}
	}
	x.Images[r.ID] = r
	for _, n := range names {
		x.Refs[n] = r.ID
	}
}

func (r *record) addDigest(d string) {
	if !slices.Contains(r.Digests, d) {
		r.Digests = append(r.Digests, d)
	}
}
