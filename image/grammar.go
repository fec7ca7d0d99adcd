package image

import "strings"

// The grammar of names, by hand: as regular expressions it would be compiled by
// every process of sbx when it starts, whether it looks at an image or not. The
// tests have the expressions, and compare.

func isHexID(s string) bool { return len(s) == 64 && all(s, lowerHex) }

// validMapKey and validTag are words: [A-Za-z0-9_][A-Za-z0-9_.-]*.
func validMapKey(s string) bool { return word(s, 64) }
func validTag(s string) bool    { return word(s, 128) }

func word(s string, limit int) bool {
	return s != "" && len(s) <= limit && s[0] != '.' && s[0] != '-' &&
		all(s, func(c byte) bool { return alnum(c) || c == '_' || c == '.' || c == '-' })
}

// validPath is a repository's name: lower-case words that are joined by ".", "_",
// "__" or any number of "-" are its components.
func validPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		for {
			n := span(part, lowerAlnum)
			if n == 0 {
				return false
			}
			if part = part[n:]; part == "" {
				break
			}
			switch {
			case strings.HasPrefix(part, "__"):
				part = part[2:]
			case part[0] == '.' || part[0] == '_':
				part = part[1:]
			default: // no dash is no joint, and then no word follows either
				part = strings.TrimLeft(part, "-")
			}
		}
	}
	return true
}

// validDomain is a host name, or an address in brackets, and perhaps a port.
func validDomain(s string) bool {
	host, port := s, "0"
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		host, port = s[:i], s[i+1:]
	}
	if port == "" || len(port) > 5 || !all(port, digit) {
		return false
	}
	if addr, ok := strings.CutPrefix(host, "["); ok {
		addr, ok = strings.CutSuffix(addr, "]")
		return ok && addr != "" && all(addr, func(c byte) bool { return lowerHex(c) || c >= 'A' && c <= 'F' || c == ':' })
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' ||
			!all(label, func(c byte) bool { return alnum(c) || c == '-' }) {
			return false
		}
	}
	return true
}

func digit(c byte) bool      { return c >= '0' && c <= '9' }
func lowerHex(c byte) bool   { return digit(c) || c >= 'a' && c <= 'f' }
func lowerAlnum(c byte) bool { return digit(c) || c >= 'a' && c <= 'z' }
func alnum(c byte) bool      { return lowerAlnum(c) || c >= 'A' && c <= 'Z' }

// span is how many bytes at the beginning of s are of a kind.
func span(s string, kind func(byte) bool) int {
	for i := range len(s) {
		if !kind(s[i]) {
			return i
		}
	}
	return len(s)
}

func all(s string, kind func(byte) bool) bool { return span(s, kind) == len(s) }
