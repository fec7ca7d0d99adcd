package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Layers lie in layers/MAPKEY/NAME: fs/ is the tree, layer.json the result of
// unpacking it. Such a directory is filled in a session, brought to disk, and
// renamed to its name: where it exists, it is complete. The name is
//
//	HEX        the DiffID of a layer that is the same on top of whatever layers;
//	chain-HEX  the ChainID, which stands for the layers below too, of one that
//	           is not (UnpackResult.NeedsLowers). Then a directory named by its
//	           DiffID, if there is one, has only a layer.json, which says so and
//	           saves others from trying.

const (
	layerMeta = "layer.json"
	layerTree = "fs"
	// parallelUnpack is how many layers are unpacked at once.
	parallelUnpack = 2
)

// emptyDiffID is the DiffID of an archive without entries. An image without
// layers gets it, since an overlay needs at least one.
const emptyDiffID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// place is a layer where it stands in an image.
type place struct {
	Layer
	// ChainID as OCI defines it: of this layer and all below.
	ChainID string
}

// places are the layers of an image, the lowest first. Never empty.
func places(layers []Layer) []place {
	if len(layers) == 0 {
		layers = []Layer{{DiffID: emptyDiffID}}
	}
	out := make([]place, len(layers))
	for i, l := range layers {
		out[i] = place{Layer: l, ChainID: l.DiffID}
		if i > 0 {
			sum := sha256.Sum256([]byte(out[i-1].ChainID + " " + l.DiffID))
			out[i].ChainID = "sha256:" + hex.EncodeToString(sum[:])
		}
	}
	return out
}

// shared is the layer's name if it does not depend on those below.
func (p place) shared() string { return strings.TrimPrefix(p.DiffID, "sha256:") }

// chained is its name if it does.
func (p place) chained() string { return "chain-" + strings.TrimPrefix(p.ChainID, "sha256:") }

func (s *Store) layerDir(mapKey, name string) string {
	return filepath.Join(s.root, "layers", mapKey, name)
}

// findLayer returns the layer if it is unpacked. If not, dependent says that it
// is known to need those below.
func (s *Store) findLayer(mapKey string, p place) (u *unpacked, dependent bool) {
	name := p.shared()
	m, err := s.layerMeta(mapKey, name)
	if err != nil || m.NeedsLowers {
		dependent = err == nil
		name = p.chained()
		m, err = s.layerMeta(mapKey, name)
	}
	if err != nil {
		return nil, dependent // also what cannot be read is made anew
	}
	return &unpacked{tree: filepath.Join(s.layerDir(mapKey, name), layerTree), meta: m}, false
}

// layerMeta reads what is known of an unpacked layer; fs.ErrNotExist if there is none.
func (s *Store) layerMeta(mapKey, name string) (*UnpackResult, error) {
	b, err := os.ReadFile(filepath.Join(s.layerDir(mapKey, name), layerMeta))
	if err != nil {
		return nil, err
	}
	m := &UnpackResult{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("layer %s: %w", name, err)
	}
	return m, nil
}
