package doctor

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	maxFile      = 64 << 10
	maxMountinfo = 4 << 20
)

func (e Env) path(p string) string {
	if e.Root == "" {
		return p
	}
	return filepath.Join(e.Root, p)
}

func (e Env) read(p string, limit int64) (string, error) {
	f, err := os.Open(e.path(p))
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	return strings.TrimSpace(string(b)), err
}

// sysctl reads a file of /proc/sys; ok is false where the kernel has none.
func (e Env) sysctl(name string) (value string, ok bool) {
	v, err := e.read("/proc/sys/"+name, maxFile)
	return v, err == nil
}

func (e Env) exists(p string) bool {
	_, err := os.Stat(e.path(p))
	return err == nil
}

func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// numbers reads whitespace-separated integers; nil if there is anything else.
func numbers(s string) []int64 {
	var l []int64
	for _, f := range strings.Fields(s) {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return nil
		}
		l = append(l, n)
	}
	return l
}
