// Package units holds kedge's systemd units that belong to the boot: the one
// that finalises a staged deployment at shutdown, the one that keeps /boot from
// being unmounted before that, and the one that reports a failure after it.
package units

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed *.service
var files embed.FS

// Names of the units.
const (
	Finalize     = "kedge-finalize-staged.service"
	Hold         = "kedge-finalize-staged-hold.service"
	BootComplete = "kedge-boot-complete.service"
)

// Names lists the units; Finalize and BootComplete are to be enabled.
var Names = []string{Finalize, Hold, BootComplete}

// DefaultProgram is where an image has kedge.
const DefaultProgram = "/usr/bin/kedge"

// Text returns a unit that runs the kedge at the absolute path program.
func Text(name, program string) (string, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("no unit %s: %w", name, err)
	}
	return strings.ReplaceAll(string(text), DefaultProgram, program), nil
}
