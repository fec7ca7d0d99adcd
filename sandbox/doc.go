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
// # How it works
//
// The caller pulls and unpacks the image, starts the network's process if it is
// not there, and clones a monitor into a new user namespace. The monitor clones
// init into the other namespaces; init builds the root and executes the workload
// in its own place. See docs/architecture.md for the picture and
// internal/proto for the messages.
//
// # What is left behind
//
// Nothing. Everything of a running sandbox is in one directory, locked by its
// monitor; when the monitor and the caller were both killed, the next Engine
// finds the directory unlocked and removes it.
package sandbox
