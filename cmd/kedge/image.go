package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
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
			Action:      withoutOperands(func(c *cli.Context) error { return show(c.Context, e, false, (*host.Host).Images, imagesText) }),
		}, cmdImagePush(e)},
	}
}

func cmdImagePush(e *env) *cli.Command {
	return &cli.Command{
		Name: "push", Usage: "put an image with this host's packages into a registry", ArgsUsage: "[IMAGE] TARGET",
		Description: "IMAGE is a name or digest of `kedge image list` that has packages; without it, that of the next\n" +
			"boot. Layers of its base are mounted where TARGET's registry has them, else they are streamed\n" +
			"from where the base came from. Other hosts can then switch to TARGET.",
		UsageText: "kedge image push registry.example/os:with-htop",
		Action: func(c *cli.Context) error {
			operands := c.Args().Slice()
			if len(operands) == 0 || len(operands) > 2 {
				return fault.New(fault.Usage, "kedge image push --help shows what it takes", "image push: one or two operands, not %d", len(operands))
			}
			image := ""
			if len(operands) == 2 {
				image = operands[0]
			}
			return runImagePush(c.Context, e, image, operands[len(operands)-1])
		},
	}
}

func runImagePush(ctx context.Context, e *env, image, target string) error {
	var pushed *v1.StoredImage
	err := e.withHost(ctx, true, func(h *host.Host) (err error) {
		pushed, err = h.PushImage(ctx, image, target)
		return err
	})
	if err != nil {
		return err
	}
	return e.print(pushed, func() string { return fmt.Sprintf("Pushed %s (%s).\n", oneLine(pushed.Image), pushed.Digest) })
}

func imagesText(images []v1.StoredImage) string {
	rows := [][]string{{"IMAGE", "VERSION", "DIGEST", "LAYERS", "SIZE", "DEPLOYMENTS"}}
	for _, i := range images {
		digest := strings.TrimPrefix(i.Digest, "sha256:")
		rows = append(rows, []string{i.Image, i.Version, digest[:min(12, len(digest))], strconv.Itoa(i.Layers), size(i.Size), strconv.Itoa(len(i.Deployments))})
	}
	return columns(rows)
}
