package main

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/rootless-sbx/sbx/image"
)

// imageRow has the keys of docker images --format. Size is that of what was downloaded;
// the rest is not measured here, see sbx system df -v.
type imageRow struct {
	Repository, Tag, Digest, ID, CreatedSince, CreatedAt, Size string

	VirtualSize, SharedSize, UniqueSize, Containers string
}

var imageHeaders = map[string]string{
	"Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "ID": "IMAGE ID",
	"CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "Size": "CONTENT SIZE",
	"VirtualSize": "CONTENT SIZE", "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "Containers": "CONTAINERS",
}

const (
	imageTable   = "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
	digestsTable = "table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
)

// imageFilter is what docker images --filter asks for.
type imageFilter struct {
	references []string
	labels     []string
	dangling   *bool
	// before, since and until are times between which it was made.
	before, since []string // of these images
	until         time.Time
}

func parseImageFilters(list []string) (f imageFilter, err error) {
	for _, s := range list {
		key, v, _ := strings.Cut(s, "=")
		switch key {
		case "reference":
			if _, err := path.Match(v, ""); err != nil || v == "" {
				return f, usagef("--filter %q: not a pattern for names", s)
			}
			f.references = append(f.references, v)
		case "label":
			f.labels = append(f.labels, v)
		case "before":
			f.before = append(f.before, v)
		case "since":
			f.since = append(f.since, v)
		case "until":
			if f.until, err = parseTime("--filter until", v, time.Now()); err != nil {
				return f, err
			}
		case "dangling":
			b := v == "true" || v == "1"
			if !b && v != "false" && v != "0" {
				return f, usagef("--filter %q: want dangling=true or dangling=false", s)
			}
			f.dangling = &b
		default:
			return f, usagef("--filter %q: want reference=PATTERN, label=KEY[=VALUE], dangling=true|false, before=IMAGE, since=IMAGE or until=TIME", s)
		}
	}
	return f, nil
}

// image says whether an image fits, apart from its names.
func (f imageFilter) image(img *image.Image) bool {
	if f.dangling != nil && *f.dangling != (len(img.Names) == 0) {
		return false
	}
	for _, l := range f.labels {
		if !hasLabel(img.Config.Config.Labels, l) {
			return false
		}
	}
	return f.until.IsZero() || img.Created().Before(f.until)
}

// between keeps the images that were made before and since others.
func (f imageFilter) between(ctx context.Context, s *image.Store, list []*image.Image) ([]*image.Image, error) {
	for _, bound := range []struct {
		refs  []string
		order int
	}{{f.before, -1}, {f.since, 1}} {
		for _, ref := range bound.refs {
			other, err := s.Get(ctx, ref)
			if err != nil {
				return nil, err
			}
			list = slices.DeleteFunc(list, func(img *image.Image) bool { return img.Created().Compare(other.Created()) != bound.order })
		}
	}
	return list, nil
}

// name says whether one of the patterns fits a name, with or without its tag.
func (f imageFilter) name(repo, full string) bool {
	for _, p := range f.references {
		for _, n := range []string{repo, full, path.Base(repo), path.Base(full)} {
			// The pattern was checked; * does not go over a slash, as in Docker.
			if ok, err := path.Match(p, n); err == nil && ok && strings.Count(p, "/") == strings.Count(n, "/") {
				return true
			}
		}
	}
	return len(f.references) == 0
}

func imagesCommand(g *globals) *command {
	var (
		format                      string
		filters                     []string
		all, quiet, noTrunc, digest bool
	)
	c := &command{
		Use: "images [OPTIONS] [NAME]", Short: "List images", Args: wantArgs(0, 1),
		Long: "With NAME only the images of that name, which may have * in it. CONTENT SIZE is\n" +
			"what was downloaded; sbx system df -v says what it takes on the disk, unpacked.",
		Complete: completeImages(1),
		RunE: withStore(g, func(ctx context.Context, c *command, s *image.Store, args []string) error {
			filter, err := parseImageFilters(append(filters, references(args)...))
			if err != nil {
				return err
			}
			imgs, err := s.List(ctx)
			if err != nil {
				return endedBy(ctx, err)
			}
			if imgs, err = filter.between(ctx, s, imgs); err != nil {
				return err
			}
			rows := imageRows(imgs, filter, noTrunc)
			if quiet && format == "" {
				return printLines(c.Out(), ids(rows)...)
			}
			table := imageTable
			if digest {
				table = digestsTable
			}
			if format == "" || format == "table" {
				format = table
			}
			return printItems(c.Out(), format, imageHeaders, rows)
		}),
	}
	fs := c.Flags()
	fs.BoolVarP(&all, "all", "a", false, "no difference here: intermediate images are never made")
	lists(fs, &filters, "filter", "f", "only these; `FILTER` is reference=PATTERN, label=KEY[=VALUE], dangling=true|false, before=IMAGE, since=IMAGE or until=TIME")
	defineRefused(fs, unsupportedFlag{name: "tree", boolean: true, harmless: []string{"false"}, why: "an image is kept for one platform", fix: "sbx images --digests"})
	fs.StringVar(&format, "format", "", "`FORMAT`: json, a Go template, or \"table TEMPLATE\"")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print ids only")
	fs.BoolVar(&noTrunc, "no-trunc", false, "print whole ids")
	fs.BoolVar(&digest, "digests", false, "show digests")
	return c
}

func references(args []string) (list []string) {
	for _, a := range args {
		list = append(list, "reference="+a)
	}
	return list
}

func ids(rows []imageRow) (list []string) {
	seen := map[string]bool{}
	for _, r := range rows {
		if !seen[r.ID] {
			list = append(list, r.ID)
		}
		seen[r.ID] = true
	}
	return list
}

// imageRows is one row for each name of each image.
func imageRows(imgs []*image.Image, filter imageFilter, whole bool) []imageRow {
	var rows []imageRow
	for _, img := range imgs {
		if !filter.image(img) {
			continue
		}
		row := imageRow{
			ID: img.ID, Digest: cmp.Or(img.Manifest.Digest, "<none>"), Size: size(img.Size), VirtualSize: size(img.Size),
			SharedSize: "N/A", UniqueSize: "N/A", Containers: "N/A",
			CreatedSince: "N/A", CreatedAt: "N/A",
		}
		if !whole {
			row.ID = fmt.Sprintf("%.12s", strings.TrimPrefix(img.ID, "sha256:"))
		}
		if t := img.Created(); !t.IsZero() && t.Unix() > 0 {
			row.CreatedSince = units.HumanDuration(time.Since(t)) + " ago"
			row.CreatedAt = t.Local().Format("2006-01-02 15:04:05 -0700 MST")
		}
		names := img.Names
		if len(names) == 0 && len(filter.references) == 0 {
			row.Repository, row.Tag = "<none>", "<none>"
			rows = append(rows, row)
		}
		for _, n := range names {
			row.Repository, row.Tag = withoutTag(n), "<none>"
			if tag := strings.TrimPrefix(n, row.Repository); tag != "" {
				row.Tag = tag[1:]
			}
			if filter.name(row.Repository, n) {
				rows = append(rows, row)
			}
		}
	}
	return rows
}
