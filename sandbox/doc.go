// Package sandbox runs container images without root and without a daemon.
//
// An [Engine] holds the directories of one user; [Engine.Create] resolves a
// [Config] into a sandbox, [Sandbox.Start] starts it, [Sandbox.Wait] returns how
// its workload ended, with nothing left behind. The program that imports this
// package calls [MaybeInit] first in main, or names the sbx binary in
// [Options.InitPath]: the processes of a sandbox are started from it.
//
//	func main() {
//		sandbox.MaybeInit()
//		e, err := sandbox.NewEngine(sandbox.Options{})
//		...
//		s, err := e.Create(ctx, sandbox.Config{Image: "demo"})
//		err = s.Start(ctx)
//		status, err := s.Wait(ctx)
//	}
//
// A sandbox with Config.Detach goes on when this process ends, one with Config.Keep
// stays when it has ended; [Sandbox.Save] leaves one that was not started. Any
// process of the user's finds them by name or id with [Engine.Open] and
// [Engine.List], and can start, stop, look at and remove them.
//
// # How it works
//
// The caller pulls and unpacks the image, starts the network's process if it is
// not there, and clones a monitor into a new user namespace. The monitor clones
// init into the other namespaces; init builds the root and executes the workload
// in its own place. See docs/architecture.md for the picture and
// internal/proto for the messages.
//
// The program may use cgo and be linked dynamically; only the image "demo", which
// holds the program itself, needs a static one.
//
// # What is left behind
//
// Nothing, unless it is to be kept. Everything of a sandbox is in one directory, locked by its monitor and
// its caller. Each of them clears up after the other. When both were killed, the
// next Create or Sweep of any engine finds the directory without an owner, ends the
// pid 1 that is recorded in it, and removes it, the sandbox's anonymous volumes and
// the files of its port driver. Files of images and named volumes stay. Of one that
// is to be kept, the record then says that its monitor was killed.
//
// # Networks
//
// [Engine.CreateNetwork] makes a network, [Engine.InspectNetwork] describes it and who
// is on it. Config.Networks says where a sandbox is, [Sandbox.ConnectNetwork] and
// [Sandbox.DisconnectNetwork] change it while it runs or not. See docs/networking.md.
//
// # Streams
//
// Stdout and Stderr are complete when Wait returns: Wait lasts as long as their
// Write. A Write that fails closes the pipe, or hangs up the terminal. A stream
// that a process outside still holds 200 ms after the end is read to what is in
// it then, at most 2 MiB, and closed. Stdin is read from Start on. An *os.File
// is polled and let go at the end, without a byte more being taken; the Read of any
// other reader cannot be interrupted, so its goroutine stays until that returns.
// The end of Stdin closes the workload's input, but no terminal.
//
// # Limits
//
// A start that is given up has 15 seconds to be undone before its monitor is
// killed and the caller does it; processes have 10 seconds to be gone after
// SIGKILL. Create looks for left-overs every 10 seconds, Sweep always. 64 KiB of
// labels, 256 mounts, 127 layers. What a monitor logs while its caller does not
// read is lost after 30 seconds.
package sandbox
