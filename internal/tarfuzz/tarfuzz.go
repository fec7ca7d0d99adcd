// Package tarfuzz has what the fuzzers of tar archives share: seeds in the formats that
// tars come in, and the repair of what a fuzzer breaks in every header that it touches.
package tarfuzz

import (
	"archive/tar"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

const block = 512

// Mend sets the checksum of each header, so that a changed one is read further than its
// first field. It changes b, which need not be an archive.
func Mend(b []byte) []byte {
	for off := 0; off+block <= len(b); {
		h := b[off : off+block]
		off += block
		if h[0] == 0 {
			continue // the end, or no header
		}
		copy(h[148:156], "        ")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		size, err := strconv.ParseUint(strings.Trim(string(h[124:136]), " \x00"), 8, 40)
		if err == nil && size < uint64(len(b)) {
			off += (int(size) + block - 1) / block * block
		}
	}
	return b
}

// Seeds are archives that try what must be refused or kept inside: links out, files
// behind links, names of every length, modes, owners, devices, attributes, holes, and
// more of each entry than there is.
func Seeds() [][]byte {
	long := strings.Repeat("d/", 150) + "f"
	entries := []tar.Header{
		{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o7777},
		{Typeflag: tar.TypeReg, Name: "d/f", Size: 1, Mode: 0o4755, Uid: 1, Gid: 2},
		{Typeflag: tar.TypeLink, Name: "h", Linkname: "/d/f"},
		{Typeflag: tar.TypeLink, Name: "up", Linkname: "../victim"},
		{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "../../../../victim"},
		{Typeflag: tar.TypeReg, Name: "s/x", Size: 1},
		{Typeflag: tar.TypeSymlink, Name: "d/up", Linkname: ".."},
		{Typeflag: tar.TypeReg, Name: "d/up/../../victim", Size: 1},
		{Typeflag: tar.TypeReg, Name: "/../victim", Size: 1},
		{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 8},
		{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o644},
		{Typeflag: tar.TypeReg, Name: "d/.wh.f"},
		{Typeflag: tar.TypeReg, Name: ".wh..."},
		{Typeflag: tar.TypeReg, Name: "d/.wh..wh..opq"},
	}
	var out [][]byte
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		for i := range entries {
			out = append(out, pack(format, entries[max(0, i-1):i+1]...))
		}
		out = append(out, pack(format, entries...))
		if format != tar.FormatUSTAR {
			out = append(out, pack(format, tar.Header{Typeflag: tar.TypeReg, Name: long}, tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: long}))
		}
	}
	for _, rec := range []map[string]string{
		{"SCHILY.xattr.user.a": "b"}, {"SCHILY.xattr.trusted.overlay.opaque": "y"}, {"SCHILY.xattr.user.overlay.redirect": "/../victim"},
		{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"},
		{"mtime": "-9223372036854775808.999999999"}, {"uid": "4294967296"}, {"path": "../victim"}, {"linkpath": "/victim"},
	} {
		h := tar.Header{Typeflag: tar.TypeReg, Name: "f"}
		var text strings.Builder
		for k, v := range rec {
			line := fmt.Sprintf(" %s=%s\n", k, v)
			n := len(line) + 2
			if n > 99 {
				n++
			}
			fmt.Fprintf(&text, "%d%s", n, line)
		}
		out = append(out, extended(text.String(), h, nil))
	}
	// A file with a hole in GNU's format 1.0, whose map is the first block of its content.
	m := append([]byte("1\n1048000\n1\n"), make([]byte, block-12)...)
	const hole = "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n31 GNU.sparse.realsize=1048001\n21 GNU.sparse.name=s\n"
	return append(out, extended(hole, tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/s"}, append(m, 'x')))
}

// pack makes an archive of the headers; contents are "x".
func pack(format tar.Format, hs ...tar.Header) []byte {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	for _, h := range hs {
		h.Format = format
		if w.WriteHeader(&h) == nil { // this format can have it
			w.Write([]byte("x")[:h.Size])
		}
	}
	w.Close()
	return b.Bytes()
}

// extended is an entry with records before it that the writer would not write.
func extended(records string, h tar.Header, content []byte) []byte {
	b := &bytes.Buffer{}
	w := tar.NewWriter(b)
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "PaxHeaders.0/f", Size: int64(len(records))})
	w.Write([]byte(records))
	h.Size = int64(len(content))
	w.WriteHeader(&h)
	w.Write(content)
	w.Close()
	out := b.Bytes()
	out[156] = tar.TypeXHeader
	return Mend(out)
}
