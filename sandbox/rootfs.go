package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/rootless-sbx/sbx/userns"
)

// openRootFS takes the user's directory as the only layer.
func (s *Sandbox) openRootFS() error {
	dir, err := filepath.Abs(s.cfg.RootFS)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return &ConfigError{Field: "rootfs", Err: err}
	}
	fi, err := os.Stat(dir)
	if err != nil || !fi.IsDir() {
		return badConfig("rootfs", "%s is not a directory", dir)
	}
	if note := strangerNote(dir, fi, s.mapping); note != "" && !s.cfg.ReadOnly {
		s.notes = append(s.notes, note)
	}
	s.lowers = []string{dir}
	return nil
}

// strangerNote warns of an owner without an id in the sandbox: there the directory
// can be read, but the kernel refuses each write to it with EOVERFLOW. The top
// stands for the tree.
func strangerNote(dir string, fi os.FileInfo, m *userns.Mapping) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	who := ""
	if _, ok := m.ContainerUID(st.Uid); !ok {
		who = fmt.Sprintf("uid %d", st.Uid)
	} else if _, ok := m.ContainerGID(st.Gid); !ok {
		who = fmt.Sprintf("gid %d", st.Gid)
	} else {
		return ""
	}
	return fmt.Sprintf("%s belongs to %s, which is no id of the sandbox: writing to it fails with \"Value too large for defined data type\"; "+
		"change its owner (sudo chown -R %d:%d %s), or run with --read-only", dir, who, os.Geteuid(), os.Getegid(), dir)
}
