package image

// Limits bound what a registry or an archive can make this package read, keep
// and create. A zero field means the default.
type Limits struct {
	// Entries of one layer, directories that it implies included: 2,000,000.
	Entries int64
	// Bytes of one layer, uncompressed, holes included: 128 GiB.
	Bytes int64
	// Ratio of uncompressed to compressed bytes, once the former exceed 1 GiB:
	// 1,000. Zero-filled files compress about that well; they become holes.
	Ratio int64
	// PathLen of an entry's name and of a link's target, in bytes: 4,095.
	PathLen int
	// Depth of the directory tree: 256.
	Depth int
	// Layers of one image: 500, what the kernel's overlay takes.
	Layers int
	// Manifest is the size of a manifest or index: 4 MiB.
	Manifest int64
	// Config is the size of an image's configuration: 8 MiB.
	Config int64
	// ArchiveEntries of an archive to load: 100,000.
	ArchiveEntries int
}

// ratioFloor: below this many bytes the ratio is not looked at.
const ratioFloor = 1 << 30

func (l Limits) withDefaults() Limits {
	def := func(p *int64, v int64) {
		if *p <= 0 {
			*p = v
		}
	}
	defInt := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&l.Entries, 2_000_000)
	def(&l.Bytes, 128<<30)
	def(&l.Ratio, 1000)
	defInt(&l.PathLen, 4095)
	defInt(&l.Depth, 256)
	defInt(&l.Layers, 500)
	def(&l.Manifest, 4<<20)
	def(&l.Config, 8<<20)
	defInt(&l.ArchiveEntries, 100_000)
	return l
}
