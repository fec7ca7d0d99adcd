// Package image keeps container images: it pulls them from registries, loads
// them from archives and unpacks their layers for the overlay.
//
// # What lies where
//
//	Root/
//	  index.json          which images exist, and what they are called
//	  index.lock          held while index.json changes or garbage is collected
//	  blobs/sha256/HEX    manifests, configurations, layers as they came
//	  layers/KEY/NAME/    an unpacked layer for the id map KEY; NAME is its DiffID,
//	    fs/               or of the layers below too (layers.go); the tree
//	    layer.json        what was noted while unpacking
//	  locks/              flocks: images in use, layers and blobs being made
//	  tmp/                one directory per running operation, flocked by it
//
// A blob is written to a temporary file, its digest and size checked while the
// bytes pass, fsynced and renamed. A layer is unpacked into a temporary
// directory, brought to disk with syncfs and renamed. An image exists once
// index.json names it, and index.json is only ever replaced as a whole. So a
// process may be killed at any time: what it leaves is a directory in tmp/ whose
// lock nobody holds, which the next Open or GC removes, and perhaps complete
// blobs and layers that nothing names, which the next GC removes.
//
// Any number of processes may use a store. Two that want the same blob or layer
// meet at its lock, and the second finds it done. A Lease holds a shared lock on
// its image; removing the image needs that lock alone and so fails with
// ErrInUse. A pull or load lists the blobs it counts on in its directory in tmp/
// (pins), and GC, which runs under index.lock as does pinning, spares them. Lock
// order: lease, layer or blob, index.
//
// Compressed blobs are kept beside the unpacked layers: other id maps need them.
//
// # Unpacking
//
// Unpack runs where uid 0 is the container's root: in a process inside the
// mapped user namespace that Config.Unpack starts, as real root, or as anybody
// with Single. Layers are unpacked each by itself, so that images share them;
// whiteouts get the form of the kernel's overlay. All paths are walked by
// descriptor from the root of the layer: openat2 with RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS where the kernel has it, else, and wherever a symlink is in
// the way, component by component with O_NOFOLLOW, links being resolved inside of
// the root.
//
// What is not kept: device nodes (a user namespace cannot make them), xattrs that
// the file system or the kernel refuses, xattrs that would steer the overlay,
// AUFS metadata. UnpackResult.Notes tells. The root directory of layers that list
// it keeps its attributes, but an overlay shows those of its writable layer.
//
// # Layers that do not list their directories
//
// ko, Bazel and others make layers with "tmp/x" and without "tmp/". Extracted on
// top of the other layers that leaves /tmp as it is; if /bin is a link to usr/bin,
// as in Debian, "bin/x" goes to /usr/bin. It is so here too, although layers are
// unpacked apart: see unpack_implied.go. Such a layer gets its directories' mode,
// owner, xattrs and times from the layers below, and follows their links, inside
// of the root. Then its tree depends on them, and is shared only by images that
// have the same ones, as its name is the ChainID. All others are shared by DiffID.
// (containerd's overlay snapshotter copies the attributes as well, but lets the
// new directory hide the link; its native one, which extracts into one tree,
// follows the link.)
//
// Layers are unpacked two at once, each alone, for as long as those below are not
// there. One that turns out to need them is put off and unpacked when they are;
// that this is so is written down, so a store tries once per layer and id map, and
// what has been unpacked in vain ends at the first such directory.
//
// # Limits
//
// See Limits: 2,000,000 entries and 128 GiB a layer, a compression ratio of
// 1,000 beyond 1 GiB, paths of 4,095 bytes, trees 256 deep, 500 layers, manifests
// of 4 MiB, configurations of 8 MiB, archives of 100,000 files, indexes three deep.
// zstd windows up to 128 MiB. Downloads: 3 at once, 5 tries each with a wait of 0.5 s
// that doubles, given up when nothing comes for 60 s. index.json up to 64 MiB.
package image
