package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
)

func cmdImage(e *env) *cli.Command {
	return &cli.Command{
		Name:        "image",
		Usage:       "show the images that this host has",
		Description: "Images are kept for as long as a deployment made from them is.",
		UsageText:   "kedge image list",
		Subcommands: []*cli.Command{{
			Name:        "list",
			Usage:       "list images, their digests and the deployments made from them",
			Description: "SIZE is that of the compressed layers, as they were fetched.",
			UsageText:   "kedge image list --json",
			Action: func(c *cli.Context) error {
				if err := noOperands(c); err != nil {
					return err
				}
				return runImageList(c.Context, e)
			},
		}},
	}
}

func runImageList(ctx context.Context, e *env) error {
	h, err := e.open(ctx, false)
	if err != nil {
		return err
	}
	defer h.Close()
	images, err := h.Images(ctx)
	if err != nil {
		return err
	}
	if e.json {
		return e.printJSON(images)
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "IMAGE\tVERSION\tDIGEST\tLAYERS\tSIZE\tDEPLOYMENTS")
	for _, i := range images {
		digest := strings.TrimPrefix(i.Digest, "sha256:")
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%d\n", oneLine(i.Image), oneLine(i.Version), digest[:min(12, len(digest))], i.Layers, size(i.Size), len(i.Deployments))
	}
	_ = w.Flush() // a strings.Builder takes everything
	return e.write([]byte(b.String()))
}
