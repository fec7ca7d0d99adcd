package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strconv"

	"github.com/rootless-sbx/sbx/image"
	"github.com/rootless-sbx/sbx/sandbox"
)

// usageRow has the keys of docker system df --format.
type usageRow struct{ Type, TotalCount, Active, Size, Reclaimable string }

var usageHeaders = map[string]string{
	"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE",
}

func systemUsageCommand(g *globals) *command {
	var verbose bool
	var format string
	c := &command{
		Use: "df [OPTIONS]", Short: "Show what sbx takes on the disk", Args: wantArgs(0, 0),
		Long: `Sizes are what the file system would give back. A sandbox's is that of its
writable layer and its log, an image's that of what was pulled and of its
unpacked layers.`,
	}
	fs := c.Flags()
	fs.BoolVarP(&verbose, "verbose", "v", false, "show each image, sandbox and volume")
	fs.StringVar(&format, "format", "", "`FORMAT`: json, a Go template, or \"table TEMPLATE\"")
	c.RunE = withEngine(g, func(ctx context.Context, c *command, e *sandbox.Engine, _ []string) error {
		u, err := e.DiskUsage(ctx)
		if err != nil {
			return err
		}
		if verbose && (format == "" || format == "table") {
			return printUsage(c.Out(), u)
		}
		if verbose {
			return usagef("sbx system df -v has a table only, and no --format")
		}
		if format == "" || format == "table" {
			format = "table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}"
		}
		return printItems(c.Out(), format, usageHeaders, usageRows(u))
	})
	return c
}

func usageRows(u *sandbox.DiskUsage) []usageRow {
	row := func(what string, total, active int, bytes, reclaimable int64) usageRow {
		text := size(reclaimable)
		if bytes > 0 {
			text += fmt.Sprintf(" (%d%%)", reclaimable*100/bytes)
		}
		return usageRow{what, strconv.Itoa(total), strconv.Itoa(active), size(bytes), text}
	}
	imagesInUse := 0
	for _, img := range u.Images {
		if img.Sandboxes > 0 {
			imagesInUse++
		}
	}
	all, unused := u.ImageSize()
	running, boxes, stopped := 0, int64(0), int64(0)
	for _, b := range u.Sandboxes {
		boxes += b.Size
		if b.State.Running {
			running++
		} else {
			stopped += b.Size
		}
	}
	linked, volumes, free := 0, int64(0), int64(0)
	for _, v := range u.Volumes {
		volumes += v.Size
		if v.Links > 0 {
			linked++
		} else {
			free += v.Size
		}
	}
	return []usageRow{
		row("Images", len(u.Images), imagesInUse, all, unused),
		row("Containers", len(u.Sandboxes), running, boxes, stopped),
		row("Local Volumes", len(u.Volumes), linked, volumes, free),
	}
}

// printUsage prints the tables of docker system df -v.
func printUsage(w io.Writer, u *sandbox.DiskUsage) error {
	var images []imageRow
	for _, img := range u.Images {
		row := imageRows([]*image.Image{img.Image}, imageFilter{}, false)[0] // by its first name
		row.Size, row.SharedSize, row.UniqueSize = size(img.Size), size(img.Shared), size(img.Size-img.Shared)
		row.Containers = strconv.Itoa(img.Sandboxes)
		images = append(images, row)
	}
	var boxes []boxRow
	for _, b := range u.Sandboxes {
		row := newBoxRow(&b.Inspection, false)
		row.Size = size(b.Size)
		boxes = append(boxes, row)
	}
	type volumeUsage struct{ Name, Links, Size string }
	var volumes []volumeUsage
	for _, v := range u.Volumes {
		volumes = append(volumes, volumeUsage{v.Name, strconv.Itoa(v.Links), size(v.Size)})
	}
	imageHeads := maps.Clone(imageHeaders)
	imageHeads["Size"] = "DISK SIZE"
	if err := printLines(w, "Images space usage:", ""); err != nil {
		return err
	}
	if err := printItems(w, "table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}", imageHeads, images); err != nil {
		return err
	}
	if err := printLines(w, "", "Containers space usage:", ""); err != nil {
		return err
	}
	if err := printItems(w, "table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}", boxHeaders, boxes); err != nil {
		return err
	}
	if err := printLines(w, "", "Local Volumes space usage:", ""); err != nil {
		return err
	}
	return printItems(w, "table {{.Name}}\t{{.Links}}\t{{.Size}}", map[string]string{"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}, volumes)
}
