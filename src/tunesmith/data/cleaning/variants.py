"""Other ways to write a character (異體字) become the usual one, in traditional text."""

from tunesmith.data.cleaning._base import AbstractEach, Log
from tunesmith.data.poems import Poem
from tunesmith.prosody.readings import readings_for

# usual form, then other glyphs of the same word; pairs that are two words (才 纔, 台 臺) are not here
_USUAL = """
為爲 黃黄 顏顔 橫横 臥卧 搖揺摇 床牀 峰峯 群羣 眾衆 妝粧 鉤鈎 簷檐 潛潜濳 啟啓 秘祕 茲兹玆 閱閲 脫脱 吳吴
戶户戸 溫温 濕溼 脈脉 墮堕 產産 污汙汚 癡痴 拋抛 唇脣 恆恒 稜棱 沒没 娛娱 繡綉 線綫 皂皁 祿禄 腳脚 裡裏
內内 剎刹 棋棊碁 針鍼 溯遡 灶竈 盜盗 蓑簑 勻匀 敘敍叙 獎奬 彥彦 氳氲 綠緑 蛻蜕 罵駡 廁厠 歲嵗 悅悦 抬擡
教敎 絕絶 飧飱 慍愠 缽鉢 蔥葱 蒞莅 銳鋭 麵麪麫 衛衞 晉晋 狀状 稅税 館舘 錄録 偽僞 兌兑 噓嘘 說説 謠謡
真眞 熅煴 粽糉 韁繮 鎮鎭 隱隠 虛虚 高髙 聲声 歷歴 曾曽 鬢髩 髮髪 強强 晚晩 既旣 即卽 遙遥 卻却 劍劒
腦脳 雞鷄 雁鴈 鬥鬭鬬 荔茘 關闗関 回囬 蓋葢 寬寛 驢馿 賴頼 倏倐 鄰隣 餅餠 姊姉 碗椀盌 毗毘 昏昬 冰氷 災灾烖
煙烟 窗窓窻牕牎 蝶蜨 筍笋 暖煖煗 鵝鵞 峨峩 村邨 澗㵎 豔艷艶 懶嬾 笑咲 杯盃 鞍鞌 寶寳 插揷 跡迹蹟 嘆歎 哲喆 德悳徳
蘇蘓 鼓皷 槳㯭 櫓艪 帆㠶 悴顇 廝厮 梅楳 盞琖 糧粮 蹤踪 輒輙
"""
_FOLD = {ord(other): group[0] for group in _USUAL.split() for other in group[1:]}


class Variants(AbstractEach):
    """Write each character of traditional verse in its usual form; simplified text is left alone.

    Only glyphs of one word are touched (爲 為, 黄 黃); what was written stands in ``original``.
    """

    def clean_one(self, poem: Poem, log: Log) -> Poem:
        text = poem.text.translate(_FOLD)
        title = poem.title.translate(_FOLD)
        if (text, title) == (poem.text, poem.title) or readings_for(poem.text).simplified:
            return poem
        changed = dict.fromkeys(a for a, b in zip(poem.text + poem.title, text + title, strict=True) if a != b)
        log.note("variants written as usual", poem, "".join(changed), "".join(changed).translate(_FOLD))
        return poem.changed(text=text, title=title)
