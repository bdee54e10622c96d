package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/kedge-os/kedge/pkg/boot/units"
	"github.com/kedge-os/kedge/pkg/fault"
)

type selfUnitsOptions struct {
	Directory string
	Program   string
}

func (o *selfUnitsOptions) AddFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "directory", Value: "/usr/lib/systemd/system", Usage: "write the units to `DIR`", Destination: &o.Directory},
		&cli.StringFlag{Name: "program", Value: units.DefaultProgram, Usage: "the units run the kedge at `PATH`", Destination: &o.Program},
	}
}

// cmdSelfUnits is for image builders; a running host uses self install.
func cmdSelfUnits(e *env) *cli.Command {
	var opts selfUnitsOptions
	return &cli.Command{
		Name:  "units",
		Usage: "write kedge's units into an image that is being built",
		Description: "For a Containerfile: writes the units that finalise a staged deployment at shutdown,\n" +
			"report after the boot and check its health. Enable them with systemctl enable.",
		UsageText: "kedge self units --directory /usr/lib/systemd/system",
		Flags:     opts.AddFlags(),
		Action:    withoutOperands(func(c *cli.Context) error { return runSelfUnits(e, opts) }),
	}
}

func runSelfUnits(e *env, opts selfUnitsOptions) error {
	if !filepath.IsAbs(opts.Program) {
		return fault.New(fault.Usage, "give --program an absolute path", "self units: %q is no absolute path", opts.Program)
	}
	for _, name := range units.Names {
		text, err := units.Text(name, opts.Program)
		if err != nil {
			return err
		}
		path := filepath.Join(opts.Directory, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fault.New(fault.NotFound, "make the directory first", "%w", err)
			}
			return fmt.Errorf("self units: %w", err)
		}
		if err := e.printf("Wrote %s\n", path); err != nil {
			return err
		}
	}
	return nil
}
