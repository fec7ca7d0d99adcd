package userns

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/parent/dynidtools"
	"github.com/rootless-containers/rootlesskit/v3/pkg/parent/idtools"
)

const (
	subUIDFile = "/etc/subuid"
	subGIDFile = "/etc/subgid"

	maxSubIDFile = 16 << 20
	maxSubIDLine = 4 << 10
)

// grants is what a user has been given, unchecked and in the order of the source.
type grants struct {
	uids, gids []idtools.SubIDRange
	// uidSource and gidSource say where they come from, for messages.
	uidSource, gidSource string
	skipped              []string
}

// lookupGrants asks for the user's subordinate ids where newuidmap itself would:
// nsswitch.conf may name a directory service; otherwise they are in two files.
func lookupGrants(cfg MappingConfig, nsswitch, name string) (grants, error) {
	uf, gf := cfg.SubUIDFile, cfg.SubGIDFile
	if uf == "" && gf == "" {
		if svc := subIDService(nsswitch); svc != "" {
			g := grants{uidSource: "getsubids (" + svc + ")", gidSource: "getsubids (" + svc + ")"}
			var err error
			if g.uids, g.gids, err = dynidtools.GetSubIDRanges(cfg.UID, name); err != nil {
				return g, fmt.Errorf("ask %s for subordinate ids: %w", svc, err)
			}
			return g, nil
		}
		g := grants{uidSource: subUIDFile, gidSource: subGIDFile}
		var err error
		if g.uids, g.gids, err = idtools.GetSubIDRanges(cfg.UID, name); err == nil {
			return g, nil
		}
		// It gives up at the first malformed line, whoever's it is, and does not
		// say which of the files has nothing for us. newuidmap skips such lines.
	}
	if uf == "" {
		uf = subUIDFile
	}
	if gf == "" {
		gf = subGIDFile
	}
	g := grants{uidSource: uf, gidSource: gf}
	for _, f := range []struct {
		path string
		to   *[]idtools.SubIDRange
	}{{uf, &g.uids}, {gf, &g.gids}} {
		ranges, skipped, err := readSubIDFile(f.path, cfg.UID, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return g, err
		}
		*f.to = ranges
		g.skipped = append(g.skipped, skipped...)
	}
	return g, nil
}

func readSubIDFile(path string, uid int, name string) (ranges []idtools.SubIDRange, skipped []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSubIDFile+1))
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxSubIDFile {
		return nil, nil, fmt.Errorf("%s is larger than %d MiB", path, maxSubIDFile>>20)
	}
	ranges, bad := parseSubIDs(b, uid, name)
	for _, n := range bad {
		skipped = append(skipped, fmt.Sprintf("%s line %d is malformed", path, n))
	}
	return ranges, skipped, nil
}

// parseSubIDs reads "owner:start:count" lines of the user, whose name or uid is
// the owner. Malformed lines of the user are counted (by number, at most ten) and
// skipped; other users' lines are not looked into.
func parseSubIDs(b []byte, uid int, name string) (ranges []idtools.SubIDRange, bad []int) {
	owner := strconv.Itoa(uid)
	for n := 1; len(b) > 0; n++ {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		line = bytes.TrimSpace(line)
		if len(line) == 0 || len(line) > maxSubIDLine || line[0] == '#' {
			continue
		}
		who, rest, ok := strings.Cut(string(line), ":")
		if !ok || who != owner && (name == "" || who != name) {
			continue
		}
		start, count, ok := strings.Cut(rest, ":")
		// ParseUint takes no sign, no space and no "0x", as shadow does not.
		s, err1 := strconv.ParseUint(start, 10, 62)
		c, err2 := strconv.ParseUint(count, 10, 62)
		if !ok || err1 != nil || err2 != nil {
			if len(bad) < 10 {
				bad = append(bad, n)
			}
			continue
		}
		ranges = append(ranges, idtools.SubIDRange{Start: int(s), Length: int(c)})
	}
	return ranges, bad
}

// subIDService returns the service that nsswitch.conf names for subordinate ids,
// or "" for the files.
func subIDService(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, 1<<20))
	for sc.Scan() {
		line, _, _ := strings.Cut(sc.Text(), "#")
		db, svc, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(db) != "subid" {
			continue
		}
		// libsubid uses the first service only.
		if l := strings.Fields(svc); len(l) > 0 && l[0] != "files" {
			return l[0]
		}
		return ""
	}
	return ""
}

// userName returns the name of a uid, "" if it has none. The pure Go resolver
// reads /etc/passwd only; users of a directory service are asked for with getent.
func userName(uid int) string {
	id := strconv.Itoa(uid)
	if u, err := user.LookupId(id); err == nil && u.Uid == id {
		return u.Username
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "getent", "passwd", id).Output()
	if err != nil {
		return "" // no getent, or no such user: the uid alone must do
	}
	name, _, _ := strings.Cut(string(out), ":")
	return name
}
