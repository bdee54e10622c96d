package setuproot

import (
	"fmt"
	"strings"

	"github.com/kedge-os/kedge/pkg/fault"
)

// Explain returns what a person before the screen of a machine that does not
// boot has to know: what failed, by the path of the file, and what to do.
func Explain(err error) string {
	var b strings.Builder
	fmt.Fprintf(&b, "kedge-initramfs: THIS IMAGE CANNOT BE BOOTED\n")
	fmt.Fprintf(&b, "kedge-initramfs: %v\n", err)
	if hint := hint(err); hint != "" {
		fmt.Fprintf(&b, "kedge-initramfs: perhaps: %s\n", hint)
	}
	b.WriteString("kedge-initramfs: reboot and choose the previous entry in the boot menu; from there\n")
	b.WriteString("kedge-initramfs: `kedge fsck` names what is damaged and `kedge fsck --repair` fetches it again\n")
	return b.String()
}

// hint leaves out what fault says where nobody gave a hint: it is about the
// running system.
func hint(err error) string {
	switch fault.KindOf(err) {
	case fault.Corrupt, fault.NotFound, fault.Conflict:
		return fault.HintOf(err)
	}
	return ""
}
