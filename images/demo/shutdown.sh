#!/bin/sh
# What the guest agent calls: shutdown -h -P|-H|-r +0 "why".
case " $* " in
*" -r "*) exec reboot ;;
*) exec poweroff ;;
esac
