// Package archive moves file trees as tar streams: [Packer] writes one entry after
// the other, [Unpack] makes files of them below a directory.
//
// Both work on descriptors and hold nothing of a file's content but one buffer.
// Owners, modes, times to the nanosecond, extended attributes, hard links, holes and
// names of any bytes are kept as far as the other side can have them; what it cannot
// is told in notes. Streams are pax, with GNU's sparse format 1.0 for files with
// large holes if that is wanted.
//
// # Unpack
//
// Every byte of a stream is hostile. A name with ".." that leaves the directory is
// refused, an absolute one begins at the directory. Symbolic links on the way are
// followed inside of the root that was given, as a program there would, or refused.
// No link that was there before or has come in the stream leads out of it, and no
// file is written that is there: a new one takes its place when it is complete, and a
// directory is never replaced by a file or a file by a directory. Device nodes are
// left out: a user namespace cannot make them.
//
// # Limits
//
// Names of 4095 bytes, 1,000,000 directories in a stream, 1,000,000 files with several
// names (of more the links become copies), 100 notes.
package archive
