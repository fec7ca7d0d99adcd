package workload

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxEnvLine bounds a line of an environment or label file; the kernel takes
// 128 KiB for one variable.
const maxEnvLine = 256 << 10

// ParseEnvFile reads a file of --env-file by Docker's rules: a line is
// NAME=VALUE, taken literally without quotes or expansion, or NAME, which
// takes the caller's value and is left out if there is none (lookup nil: never
// any). Blank lines and lines beginning with # are skipped, and a byte order
// mark. name is for errors.
func ParseEnvFile(r io.Reader, name string, lookup func(string) (string, bool)) ([]string, error) {
	return parseKVFile(r, name, func(key string) (string, bool) {
		if lookup == nil {
			return "", false
		}
		return lookup(key)
	})
}

// ParseLabelFile reads a file of --label-file: as ParseEnvFile, but NAME alone
// is a label with an empty value.
func ParseLabelFile(r io.Reader, name string) ([]string, error) {
	return parseKVFile(r, name, func(string) (string, bool) { return "", true })
}

func parseKVFile(r io.Reader, name string, lookup func(string) (string, bool)) ([]string, error) {
	var out []string
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxEnvLine)
	n := 0
	for ; sc.Scan(); n++ {
		line := sc.Bytes()
		bad := func(format string, args ...any) error {
			return invalid("", "write NAME=VALUE, or NAME to pass the caller's value on",
				"%s line %d: %s", name, n+1, fmt.Sprintf(format, args...))
		}
		if n == 0 {
			line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
		}
		if !utf8.Valid(line) {
			return nil, bad("invalid UTF-8")
		}
		text := strings.TrimLeftFunc(string(line), unicode.IsSpace)
		if text == "" || text[0] == '#' {
			continue
		}
		key, _, hasValue := strings.Cut(text, "=")
		switch {
		case key == "":
			return nil, bad("no variable name in %q", text)
		case strings.ContainsFunc(key, unicode.IsSpace):
			return nil, bad("variable name %q contains white space", key)
		case strings.IndexByte(text, 0) >= 0:
			return nil, bad("%q contains a NUL byte", key)
		}
		if !hasValue {
			v, ok := lookup(key)
			if !ok {
				continue
			}
			text = key + "=" + v
		}
		out = append(out, text)
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, invalid("", "", "%s line %d: longer than %d KiB", name, n+1, maxEnvLine>>10)
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return out, nil
}

// ParseEnv checks the argument of --env: NAME=VALUE or NAME.
func ParseEnv(s string) (string, error) {
	key, _, _ := strings.Cut(s, "=")
	switch {
	case key == "":
		return "", invalid("", "write NAME=VALUE", "invalid environment variable: %q", s)
	case strings.IndexByte(s, 0) >= 0:
		return "", invalid("", "", "environment variable %q contains a NUL byte", key)
	}
	return s, nil
}

// ParseLabel parses the argument of --label: KEY=VALUE, or KEY with an empty
// value.
func ParseLabel(s string) (key, value string, err error) {
	key, value, _ = strings.Cut(s, "=")
	if key == "" || strings.ContainsFunc(key, unicode.IsSpace) {
		return "", "", invalid("", "write KEY=VALUE", "invalid label %q", s)
	}
	return key, value, nil
}
